"""The command ``compare``: two saved runs side by side, with the noise shown."""

import argparse
import itertools
import json
import statistics
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bertron_loadtest.figures import (
    COUNTS,
    FIGURES,
    PROCESS_FIGURES,
    WHOLE_RUN,
    WHOLE_RUN_ONLY,
    figures_of,
    find_phase,
    measured_span,
    right_latencies_ms,
)
from bertron_loadtest.page import Page, Section, Table, shown
from bertron_loadtest.phases import PhaseRecord
from bertron_loadtest.run_record import Run

NUM_WINDOWS = 8
RULE = (
    f"Each run's phase is cut into {NUM_WINDOWS} equal windows and a figure is taken in each; "
    "shown are the median and the range. Runs whose ranges overlap are equal within the noise. So "
    "a difference smaller than the windows' own spread is not seen; and the windows of a run share "
    "its moment, so that a machine that was busier during one run looks like a difference. Take "
    "turns, more than once, before you believe a small one."
)
_TERMINAL_COLUMNS = 100
_MORE_IS_BETTER = ("calls_per_s", "texts_per_s", "tokens_per_s")
_NEITHER_IS_BETTER = ("batch_texts", "batch_tokens", "padding_saved")
_OF_NO_WINDOW = (*COUNTS, *WHOLE_RUN_ONLY)  # a single wrong answer is no noise


@dataclass(frozen=True)
class Comparison:
    """One figure of two runs.

    Attributes:
        figure: Its name.
        a: Of the first run, a value for each window in which it is known.
        b: Of the second.
        verdict: What the second is, by ``RULE``; - where a run does not know the figure.
    """

    figure: str
    a: Sequence[float]
    b: Sequence[float]
    verdict: str

    @property
    def ratio(self) -> float | None:
        """The second's median by the first's; None unless both are above 0."""
        if not self.a or not self.b:
            return None
        base, other = statistics.median(self.a), statistics.median(self.b)
        return other / base if base > 0 and other > 0 else None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("run_a", type=Path, metavar="RUN_A", help="folder of the first run")
    parser.add_argument("run_b", type=Path, metavar="RUN_B", help="folder of the second")
    parser.add_argument("--phase", default=WHOLE_RUN, help="of both; default: all")
    parser.add_argument("--output", type=Path, metavar="FILE.html", help="with pictures")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def main(args: argparse.Namespace) -> int:
    """Print the comparison; 0 whatever it says."""
    a, b = Run.load(args.run_a), Run.load(args.run_b)
    names = {"A": str(args.run_a), "B": str(args.run_b)}
    rows = compare_runs(a, b, args.phase)
    if args.output:
        _write_page(args.output, names, (a, b), args.phase, rows)
    if args.json:
        text = json.dumps(_document(names, (a, b), args.phase, rows), indent=2)
    else:
        text = _text(names, (a, b), args.phase, rows)
    sys.stdout.write(text + "\n")
    return 0


def is_better(a: Sequence[float], b: Sequence[float], *, lower_is_better: bool = False) -> int:
    """Compare two sets of measurements of the same thing, by ``RULE``.

    Args:
        a: One value or more.
        b: One value or more.
        lower_is_better: As of latencies.

    Returns:
        1 if every value of ``a`` is better than every one of ``b``, -1 if every one is worse, else
        0: their ranges overlap.

    Raises:
        ValueError: There are none of one, or one is not a number.
    """
    if not len(a) or not len(b) or not np.isfinite([*a, *b]).all():
        raise ValueError(f"{list(a)} and {list(b)} cannot be compared: finite numbers are wanted")
    higher = int(min(a) > max(b)) - int(max(a) < min(b))
    return -higher if lower_is_better else higher


def compare_runs(a: Run, b: Run, phase_name: str = WHOLE_RUN) -> list[Comparison]:
    """Return each figure of a phase that either run knows in some window.

    Raises:
        ValueError: A run has no such phase.
    """
    of_a, of_b = _of_windows(a, phase_name), _of_windows(b, phase_name)
    return [
        Comparison(name, of_a.get(name, []), of_b.get(name, []), _verdict(name, of_a, of_b))
        for name in dict.fromkeys([*of_a, *of_b])
    ]


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what two mappings do not agree on, with None for what one has not."""
    values = {key: (a.get(key), b.get(key)) for key in dict.fromkeys([*a, *b])}
    return {key: pair for key, pair in values.items() if pair[0] != pair[1]}


def differing_tables(
    found: Mapping[str, tuple[Any, Any]], names: Sequence[str] = ("A", "B")
) -> list[Table]:
    """Return a table of what ``differing`` found, or none."""
    rows = [(key, *(str(value) for value in pair)) for key, pair in found.items()]
    return [Table(("", *names), rows, left=frozenset({1, 2}))] if rows else []


def comparison_table(rows: Sequence[Comparison], names: Sequence[str] = ("A", "B")) -> Table:
    """Return the figures of two runs under headings."""
    first, second = names
    return Table(
        ("figure", first, "range", second, "range", f"{second} / {first}", f"{second} is"),
        [
            (
                *(row.figure, *_median_and_range(row.a), *_median_and_range(row.b)),
                *(shown(row.ratio), row.verdict),
            )
            for row in rows
        ],
        left=frozenset({6}),
    )


def _of_windows(run: Run, phase_name: str) -> dict[str, list[float]]:
    phase = find_phase(run, phase_name)
    edges = np.linspace(*measured_span(run, phase), NUM_WINDOWS + 1).tolist()
    windows = [
        figures_of(run, PhaseRecord("window", 0, start_s, end_s))
        for start_s, end_s in itertools.pairwise(edges)
    ]
    names = [name for name in FIGURES if name not in _OF_NO_WINDOW]
    names += [name for name in windows[0] if name.partition(".")[0] in PROCESS_FIGURES[:2]]
    values = {name: [found[name] for found in windows] for name in names}
    known = {name: [value for value in row if value is not None] for name, row in values.items()}
    return {name: row for name, row in known.items() if row}


def _verdict(
    name: str, of_a: Mapping[str, Sequence[float]], of_b: Mapping[str, Sequence[float]]
) -> str:
    if name not in of_a or name not in of_b:
        return "-"
    order = is_better(of_b[name], of_a[name], lower_is_better=name not in _MORE_IS_BETTER)
    if not order:
        return "equal within the noise"
    if name in _NEITHER_IS_BETTER:
        return "lower" if order > 0 else "higher"
    return "better" if order > 0 else "worse"


def _median_and_range(values: Sequence[float]) -> tuple[str, str]:
    if not values:
        return "-", "-"
    return shown(statistics.median(values)), f"{shown(min(values))} to {shown(max(values))}"


def _counts_table(runs: tuple[Run, Run], phase_name: str) -> Table:
    found = [figures_of(run, find_phase(run, phase_name)) for run in runs]
    rows = [(name, *(shown(figures[name]) for figures in found)) for name in _OF_NO_WINDOW]
    return Table(("count", "A", "B"), rows)


def _sections(runs: tuple[Run, Run], phase_name: str, rows: Sequence[Comparison]) -> list[Section]:
    a, b = runs
    asked = differing_tables(differing(a.settings, b.settings))
    return [
        Section(
            "THE RUNS WERE ASKED FOR DIFFERENT THINGS" if asked else "Asked for the same",
            [] if asked else ["Every setting of the two runs is the same."],
            tables=asked,
        ),
        Section(f"Figures of {phase_name}", [RULE], tables=[comparison_table(rows)]),
        Section(
            f"Counts of {phase_name}",
            ["Of the whole phase; a wrong answer is never noise."],
            tables=[_counts_table(runs, phase_name)],
        ),
        Section(
            "Made at different times or places",
            tables=differing_tables(differing(a.setting, b.setting)),
        ),
    ]


def _text(
    names: Mapping[str, str], runs: tuple[Run, Run], phase_name: str, rows: Sequence[Comparison]
) -> str:
    parts = ["\n".join(f"{letter}: {name}" for letter, name in names.items())]
    for section in _sections(runs, phase_name, rows):
        if section.notes or section.tables:
            notes = [textwrap.fill(note, _TERMINAL_COLUMNS) for note in section.notes]
            tables = [table.text() for table in section.tables]
            parts.append("\n".join([section.heading, *notes, *tables]))
    return "\n\n".join(parts)


def _document(
    names: Mapping[str, str], runs: tuple[Run, Run], phase_name: str, rows: Sequence[Comparison]
) -> dict[str, Any]:
    a, b = runs
    return {
        **names,
        "phase": phase_name,
        "differing_settings": differing(a.settings, b.settings),
        "figures": [{**asdict(row), "ratio": row.ratio} for row in rows],
        "counts": {
            name: [figures_of(run, find_phase(run, phase_name))[name] for run in runs]
            for name in _OF_NO_WINDOW
        },
        "rule": RULE,
    }


def _write_page(
    path: Path,
    names: Mapping[str, str],
    runs: tuple[Run, Run],
    phase_name: str,
    rows: Sequence[Comparison],
) -> None:
    from bertron_loadtest import plots

    phases = [find_phase(run, phase_name) for run in runs]
    pairs = zip(runs, phases, strict=True)
    drawn = dict(zip(names, pairs, strict=True))
    latencies_ms = {letter: right_latencies_ms(*pair) for letter, pair in drawn.items()}
    with plots.style():
        picture = plots.svg_of(plots.side_by_side(drawn, latencies_ms), "both")
    asked, *others = _sections(runs, phase_name, rows)
    both = Section("Throughput and latencies", pictures=[picture])
    notes = [f"{letter}: {name}" for letter, name in names.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    Page("Two load tests compared", notes, None, [asked, both, *others]).write(path)
