"""What a run came to, for people and for programs: a page, JSON, CSV, and a few lines of text."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bertron_loadtest.compare import (
    RULE,
    compare_runs,
    comparison_table,
    differing,
    differing_tables,
)
from bertron_loadtest.figures import (
    RAMP_PHASE,
    WHOLE_RUN,
    Figures,
    batch_sizes,
    batch_tokens,
    errors_by_class,
    figures_by_phase,
    find_phase,
    right_latencies_ms,
)
from bertron_loadtest.page import Page, Section, Table, shown
from bertron_loadtest.phases import WARM_UP
from bertron_loadtest.report_tables import (
    batch_table,
    count_errors,
    error_table,
    exactly,
    figure_table,
    is_open,
    load_of,
    mapping_table,
    phase_table,
    process_table,
    time_table,
    verdict_table,
)
from bertron_loadtest.run_record import Run
from bertron_loadtest.thresholds import Verdict

REPORT_FILE = "report.html"
FIGURES_FILE = "figures.json"
TABLE_FILE = "figures.csv"
SATURATION_FILE = "saturation.svg"


def write_report(
    run: Run, folder: Path, verdicts: Sequence[Verdict], baseline: Run | None = None
) -> None:
    """Write the files of a run's report into ``folder``, which is made.

    They are ``report.html``, ``figures.json``, ``figures.csv`` (a phase, figure and value a line)
    and for a ramp ``saturation.svg``.
    """
    from bertron_loadtest import plots

    folder.mkdir(parents=True, exist_ok=True)
    by_phase = figures_by_phase(run)
    document = json.dumps(_document(run, by_phase, verdicts), indent=2, allow_nan=False)
    (folder / FIGURES_FILE).write_text(document + "\n", encoding="utf-8")
    with (folder / TABLE_FILE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("phase", "figure", "value"))
        for phase, found in by_phase.items():
            writer.writerows((phase, name, value) for name, value in found.items())
    with plots.style():
        pictures = _pictures(run, by_phase)
        if "saturation" in pictures:
            plots.write_svg(pictures["saturation"], folder / SATURATION_FILE)
        svgs = {name: plots.svg_of(figure, name) for name, figure in pictures.items()}
    sections = [
        *_judged_sections(run, by_phase, verdicts),
        *_picture_sections(run, by_phase, svgs),
        *_other_sections(run, by_phase, verdicts, baseline),
    ]
    page = Page(_title(run), _notes(run, by_phase, verdicts), _passed(verdicts), sections)
    page.write(folder / REPORT_FILE)


def text_summary(run: Run, verdicts: Sequence[Verdict]) -> str:
    """Return what a terminal shows of a run; its last line is PASSED or FAILED."""
    by_phase = figures_by_phase(run)
    parts = [_title(run), phase_table(run, by_phase).text()]
    named = {
        "where the time went, ms a call": time_table(by_phase),
        "batches of bert": batch_table(by_phase),
        "processes": process_table(run, by_phase[WHOLE_RUN]),
        "calls that were not right": error_table(run),
    }
    parts += [f"{name}\n{table.text()}" for name, table in named.items() if table]
    judged = [f"failed: {_sentence(verdict)}" for verdict in verdicts if not verdict.passed]
    judged += [f"not judged: {note}" for note in _not_judged(verdicts)]
    judged.append("PASSED" if _passed(verdicts) else "FAILED")
    return "\n\n".join([*parts, "\n".join(judged)])


def _passed(verdicts: Sequence[Verdict]) -> bool:
    return bool(verdicts) and all(verdict.passed for verdict in verdicts)


def _title(run: Run) -> str:
    settings = run.settings
    load = f"{settings.get('users', '?')} users"
    if is_open(run):
        load = f"{shown(settings.get('rate'))} calls/s"
    return f"Load test: {settings.get('workload', '?')}, {settings.get('shape', '?')}, {load}"


def _notes(run: Run, by_phase: Mapping[str, Figures], verdicts: Sequence[Verdict]) -> list[str]:
    found = by_phase[WHOLE_RUN]
    right, refused = shown(found["right"]), shown(found["refused"])
    kept = [verdict.passed for verdict in verdicts if verdict.judged]
    return [
        *([f"The run could not be made: {run.problem}"] if run.problem else []),
        f"{run.sent:,} calls were sent: {right} answered rightly, {refused} refused, "
        f"{shown(count_errors(found))} wrong, failed or lost. "
        f"{sum(kept)} of {len(kept)} limits were kept.",
        *(f"Not judged: {note}." for note in _not_judged(verdicts)),
    ]


def _document(
    run: Run, by_phase: Mapping[str, Figures], verdicts: Sequence[Verdict]
) -> dict[str, Any]:
    sizes = {name: batch_sizes(run, find_phase(run, name)) for name in by_phase}
    tokens = {name: batch_tokens(run, find_phase(run, name)) for name in by_phase}
    return {
        "passed": _passed(verdicts),
        "problem": run.problem,
        "verdicts": [asdict(verdict) for verdict in verdicts],
        "phases": [asdict(phase) for phase in run.phases],
        "sent": run.sent,
        "figures": by_phase,
        "batch_texts": sizes,
        "batch_tokens": {
            name: {_edge(edge): count for edge, count in counts.items()}
            for name, counts in tokens.items()
        },
        "errors": [
            {"outcome": outcome, "error": error, "calls": count}
            for outcome, error, count in errors_by_class(run)
        ],
        "settings": dict(run.settings),
        "setting": dict(run.setting),
    }


def _edge(tokens: float) -> str:
    return f"{tokens:.0f}" if math.isfinite(tokens) else "+Inf"


def _sentence(verdict: Verdict) -> str:
    what = f"{verdict.phase} {verdict.figure}"
    if verdict.reason:
        return f"{what}, {verdict.limit}: {verdict.reason}"
    return f"{what} is {exactly(verdict.found)}, {verdict.limit} is wanted"


def _not_judged(verdicts: Sequence[Verdict]) -> list[str]:
    """Phases by why they were not; a line for each reason."""
    by_reason: dict[str, dict[str, None]] = {}
    for verdict in verdicts:
        if not verdict.judged:
            what = verdict.phase
            if "baseline" in verdict.limit:
                what += f" {verdict.figure}"
            by_reason.setdefault(verdict.reason, {})[what] = None
    return [f"{', '.join(names)}: {reason}" for reason, names in by_reason.items()]


def _judged_sections(
    run: Run, by_phase: Mapping[str, Figures], verdicts: Sequence[Verdict]
) -> list[Section]:
    failed = [verdict for verdict in verdicts if not verdict.passed]
    return [
        Section("Failed", tables=[verdict_table(failed)] if failed else []),
        Section("Phases", tables=[phase_table(run, by_phase)]),
    ]


def _pictures(run: Run, by_phase: Mapping[str, Figures]) -> dict[str, Any]:
    """Figures of matplotlib by name, but for those of which nothing is known."""
    from bertron_loadtest import plots

    phases = [phase.name for phase in run.phases if phase.name != WARM_UP]
    latencies = {name: right_latencies_ms(run, find_phase(run, name)) for name in phases}
    ramp = [name for name in phases if RAMP_PHASE.fullmatch(name)]
    pictures = {
        "time": plots.over_time(run),
        "distribution": plots.latency_distribution(latencies),
        "parts": plots.where_time_went({name: by_phase[name] for name in phases}),
        "batches": plots.batches(batch_sizes(run, None), batch_tokens(run, None)),
        "processes": plots.processes_over_time(run),
        "saturation": plots.saturation({load_of(run, name): by_phase[name] for name in ramp}),
    }
    return {name: figure for name, figure in pictures.items() if figure is not None}


def _picture_sections(
    run: Run, by_phase: Mapping[str, Figures], svgs: Mapping[str, str]
) -> list[Section]:
    load = "calls/s that were due" if is_open(run) else "users"
    described: Mapping[str, tuple[str, str, Table | None]] = {
        "time": ("Throughput and latency over time", "Of right calls.", None),
        "distribution": ("Latency distribution", "Of right calls, a curve a phase.", None),
        "parts": ("Where the time went", "Means; the table has ms.", time_table(by_phase)),
        "batches": (
            "Batches of bert",
            "How many texts and tokens were computed at once.",
            batch_table(by_phase),
        ),
        "processes": (
            "CPU and memory",
            "The table's CPU is the mean after the warm-up.",
            process_table(run, by_phase[WHOLE_RUN]),
        ),
        "saturation": (
            "Saturation",
            f"Latency over throughput; the numbers are {load}. Where more of them bring no more "
            "texts/s, calls only wait longer.",
            None,
        ),
    }
    return [
        Section(heading, [note], [svgs[name]], [table] if table else [])
        for name, (heading, note, table) in described.items()
        if name in svgs
    ]


def _other_sections(
    run: Run,
    by_phase: Mapping[str, Figures],
    verdicts: Sequence[Verdict],
    baseline: Run | None,
) -> list[Section]:
    errors = error_table(run)
    sections = [
        Section("Calls that were not right", tables=[errors] if errors else []),
        Section("Every threshold", tables=[verdict_table(verdicts)] if verdicts else []),
    ]
    if baseline is not None:
        names = ("baseline", "run")
        asked = differing_tables(differing(baseline.settings, run.settings), names)
        shouted = ["THE BASELINE WAS ASKED FOR SOMETHING ELSE, see the first table."]
        table = comparison_table(compare_runs(baseline, run), names)
        notes = [*(shouted if asked else []), RULE]
        sections.append(Section("Beside the baseline", notes, tables=[*asked, table]))
    return [
        *sections,
        Section("Every figure", tables=[figure_table(by_phase)], folded=True),
        Section("What was asked for", tables=[mapping_table(run.settings)]),
        Section("Where and with what", tables=[mapping_table(run.setting)]),
    ]
