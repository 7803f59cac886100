"""The tables of a report, the same on its page and in a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from bertron_loadtest.figures import (
    SERVER_PARTS,
    Figures,
    errors_by_class,
    find_phase,
    measured_span,
    process_names,
)
from bertron_loadtest.page import Table, shown, shown_share
from bertron_loadtest.run_record import Run
from bertron_loadtest.thresholds import Verdict

MOST_ERRORS = 20  # kinds that are shown; figures.json has all


def is_open(run: Run) -> bool:
    """Return whether calls arrived without waiting for each other."""
    return run.settings.get("loop") == "open"


def phase_table(run: Run, by_phase: Mapping[str, Figures]) -> Table:
    """Return a line for each phase and one for all; marked where calls failed."""
    load = "calls/s due" if is_open(run) else "users"
    times = ("p50_ms", "p95_ms", "p99_ms", "max_ms")
    rows = [
        (
            *(name, load_of(run, name), shown(found["texts_per_s"])),
            *(shown(found["tokens_per_s"]), *(shown(found[time]) for time in times)),
            *(shown(found["refused"]), shown(count_errors(found))),
        )
        for name, found in by_phase.items()
    ]
    marked = [row for row, found in enumerate(by_phase.values()) if count_errors(found)]
    headings = ("phase", load, "texts/s", "tokens/s", "p50 ms", "p95 ms", "p99 ms", "max ms")
    return Table((*headings, "refused", "errors"), rows, marked=frozenset(marked))


def count_errors(found: Figures) -> float:
    """Return how many calls were neither right nor refused, those that never ended included."""
    return sum(found[name] or 0 for name in ("wrong", "failed", "unanswered"))


def load_of(run: Run, name: str) -> str:
    """Return the users of a phase; in an open loop the calls/s that were due in it."""
    phase = find_phase(run, name)
    if not is_open(run):
        return "" if phase is None else f"{phase.users}"
    start_s, end_s = measured_span(run, phase)
    due = (run.samples.due_s >= start_s) & (run.samples.due_s < end_s)
    return shown(float(due.sum()) / (end_s - start_s)) if end_s > start_s else "-"


def time_table(by_phase: Mapping[str, Figures]) -> Table | None:
    """Return where the mean time of a call went, in ms; None where that is not known."""
    names = ("mean_ms", "network_ms", *SERVER_PARTS)
    rows = [
        (phase, *(shown(found[name]) for name in names))
        for phase, found in by_phase.items()
        if found["server_ms"] is not None
    ]
    headings = ("phase", "mean", "network", "tokenizer waits", "tokenizer", "between steps")
    return Table((*headings, "bert waits", "bert"), rows) if rows else None


def batch_table(by_phase: Mapping[str, Figures]) -> Table | None:
    """Return how full the batches of ``bert`` were; None where that is not known."""
    rows = [
        (
            *(phase, shown(found["batch_texts"]), shown(found["batch_tokens"])),
            shown_share(found["padding_saved"]),
        )
        for phase, found in by_phase.items()
        if found["batch_texts"] is not None or found["batch_tokens"] is not None
    ]
    return Table(("phase", "texts", "tokens", "padding not computed"), rows) if rows else None


def process_table(run: Run, found: Figures) -> Table | None:
    """Return what each process used in a phase; None where none was seen."""
    rows = []
    for name in process_names(run):
        key = name.replace(" ", "_")
        figures = (f"cpu_cores.{key}", f"memory_mb.{key}", f"memory_slope_mb_per_min.{key}")
        rows.append((name, *(shown(found[figure]) for figure in figures)))
    headings = ("process", "CPU cores", "MB at the end", "MB/min")
    return Table(headings, rows) if rows else None


def error_table(run: Run) -> Table | None:
    """Return the kinds of calls that were not right; None where there are none."""
    errors = errors_by_class(run)
    rows = [(f"{count:,}", outcome, error) for outcome, error, count in errors[:MOST_ERRORS]]
    if len(errors) > MOST_ERRORS:
        left = sum(count for _, _, count in errors[MOST_ERRORS:])
        rows.append((f"{left:,}", "", f"of {len(errors) - MOST_ERRORS} more kinds"))
    if run.sent > len(run.samples):
        rows.append((f"{run.sent - len(run.samples):,}", "never ended", ""))
    return Table(("calls", "outcome", "error"), rows, left=frozenset({1, 2})) if rows else None


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """Return a line for each limit; marked where it was not kept."""
    words = {True: "passed", False: "failed"}
    rows = [
        (
            *(verdict.phase, verdict.figure, verdict.limit, exactly(verdict.found)),
            words[verdict.passed] if verdict.judged else "not judged",
            verdict.reason,
        )
        for verdict in verdicts
    ]
    marked = frozenset(row for row, verdict in enumerate(verdicts) if not verdict.passed)
    headings = ("phase", "figure", "limit", "found", "", "why")
    return Table(headings, rows, left=frozenset({1, 2, 4, 5}), marked=marked)


def exactly(value: float | None) -> str:
    """Return more digits than ``shown``: a limit that is just missed has to look missed."""
    return "-" if value is None else f"{value:.6g}"


def figure_table(by_phase: Mapping[str, Figures]) -> Table:
    """Return every figure, a column for each phase."""
    names = next(iter(by_phase.values()))
    rows = [(name, *(shown(found[name]) for found in by_phase.values())) for name in names]
    return Table(("figure", *by_phase), rows)


def mapping_table(mapping: Mapping[str, Any]) -> Table:
    """Return names and values."""
    rows = [(name, str(value)) for name, value in mapping.items()]
    return Table(("", ""), rows, left=frozenset({1}))
