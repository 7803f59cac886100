"""The command ``cross-check``: NVIDIA's perf_analyzer and our own load on one server, in turns.

Two load generators that share no code, the same texts, one a call, as many calls at a time. Where
they disagree by more than the rounds do among themselves, one of them measures itself.
"""

import argparse
import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from bertron_loadtest.figures import figures_of
from bertron_loadtest.load import LoadSettings, ServerPlace, run_load
from bertron_loadtest.perf_analyzer import WHEEL, find_perf_analyzer, run_perf_analyzer
from bertron_loadtest.run import add_server_arguments, new_folder, say, server_place, sizes
from bertron_loadtest.workload import SAMPLE_TEXTS, make_workload

_WARM_UP_S = 2.0  # of our own load
_TEXTS = 3000  # for perf_analyzer, which begins anew after them
_NEAR = 0.05  # a smaller difference needs no explanation


@dataclass(frozen=True)
class Measurement:
    """Of one load; ``outside_ms`` is the mean time of a call that was not in the server."""

    texts_per_s: float
    p50_ms: float
    p99_ms: float
    outside_ms: float | None


# Of a url, with so many calls at a time.
Measure = Callable[[str, int], Measurement]


@dataclass(frozen=True)
class Comparison:
    """The measurements of both load generators, one a round."""

    scheme: str
    concurrency: int
    theirs: Sequence[Measurement]
    ours: Sequence[Measurement]

    @property
    def ratios(self) -> list[float]:
        """Of texts/s, ours by theirs, one a round."""
        pairs = zip(self.ours, self.theirs, strict=True)
        return [ours.texts_per_s / theirs.texts_per_s for ours, theirs in pairs]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_server_arguments(parser.add_argument_group("the server"))
    parser.add_argument(
        "--perf-analyzer",
        type=Path,
        metavar="PATH",
        help="the program; default: the one on the PATH, else that in build/perf-analyzer",
    )
    parser.add_argument(
        "--fetch", action="store_true", help=f"make that in build from {WHEEL} if there is none"
    )
    parser.add_argument(
        "--concurrency",
        type=sizes,
        default=(1, 8, 32),
        metavar="1,8,32",
        help="calls at a time (default: 1,8,32)",
    )
    parser.add_argument("--texts", type=Path, help="file with a text a line; default: a sample")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each load (default: 6)")


def main(args: argparse.Namespace) -> int:
    """Measure with both, print the table and what it means; 0 if both got right answers."""
    if args.rounds < 1 or args.seconds <= 0:
        raise ValueError(f"{args.rounds} rounds of {args.seconds:g} s; positive numbers are wanted")
    program = find_perf_analyzer(args.perf_analyzer, fetch=args.fetch)
    workload = make_workload("short", sample=args.texts or SAMPLE_TEXTS, texts_a_call=(1,))
    # As our users draw them: texts whose vectors are known more often than others.
    calls = itertools.islice(workload.calls("perf_analyzer"), _TEXTS)
    texts = list(itertools.chain.from_iterable(calls))
    folder = new_folder("cross-check")
    with server_place(args) as place:

        def theirs(url: str, concurrency: int) -> Measurement:
            found = run_perf_analyzer(
                program, url, args.model, texts, concurrency=concurrency, seconds=args.seconds
            )
            outside_ms = found.mean_ms - found.server_ms
            return Measurement(found.requests_per_s, found.p50_ms, found.p99_ms, outside_ms)

        def ours(url: str, concurrency: int) -> Measurement:
            settings = LoadSettings(
                callers=(urlsplit(url).scheme,),
                model=args.model,
                texts=args.texts,
                texts_a_call=(1,),
                users=concurrency,
                seconds=args.seconds,
                warm_up_s=_WARM_UP_S,
            )
            return own_measurement(settings, place, folder)

        comparisons = compare(
            list(place.urls.values()), args.concurrency, args.rounds, theirs=theirs, ours=ours
        )
    say(table(comparisons))
    say("")
    for comparison in comparisons:
        say(in_words(comparison))
    return 0


def own_measurement(settings: LoadSettings, place: ServerPlace, folder: Path) -> Measurement:
    """Make one run of our own; it is saved into a new folder in ``folder``.

    Raises:
        ValueError: Not every answer was right.
    """
    count = len(list(folder.iterdir())) if folder.is_dir() else 0
    run = run_load(settings, place, folder / f"{count + 1}")
    whole, load = figures_of(run, None), figures_of(run, run.phases[-1]) if run.phases else {}
    rate, p50_ms, p99_ms = (load.get(name) for name in ("texts_per_s", "p50_ms", "p99_ms"))
    if run.problem or whole["right"] != run.sent or not (rate and p50_ms and p99_ms):
        told = run.problem or f"{whole['right']:g} of {run.sent} calls were answered rightly"
        raise ValueError(f"our own load: {told}")
    return Measurement(rate, p50_ms, p99_ms, load["network_ms"])


def compare(
    urls: Sequence[str],
    concurrencies: Sequence[int],
    rounds: int,
    *,
    theirs: Measure,
    ours: Measure,
) -> list[Comparison]:
    """Measure every url at every concurrency with both, in turns; each is first every other round.

    Args:
        urls: Of one server.
        concurrencies: Calls at a time.
        rounds: Over everything.
        theirs: perf_analyzer.
        ours: Our own load.
    """
    cells = [(url, concurrency) for url in urls for concurrency in concurrencies]
    found: dict[tuple[str, int], tuple[list[Measurement], list[Measurement]]]
    found = {cell: ([], []) for cell in cells}
    for turn in range(rounds):
        for url, concurrency in cells:
            say(f"round {turn + 1} of {rounds}: {urlsplit(url).scheme}, {concurrency} at a time")
            for which in (0, 1) if turn % 2 == 0 else (1, 0):
                measure = (theirs, ours)[which]
                found[url, concurrency][which].append(measure(url, concurrency))
    return [
        Comparison(urlsplit(url).scheme, concurrency, *found[url, concurrency])
        for url, concurrency in cells
    ]


def table(comparisons: Sequence[Comparison]) -> str:
    """Return medians over rounds as a Markdown table, perf_analyzer's value first in each cell."""
    lines = [
        "perf_analyzer / ours:",
        "",
        "| protocol | calls at a time | texts/s | p50 ms | p99 ms | ms not in the server | ratio |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for cell in comparisons:
        pairs = [
            f"{_shown(_median(cell.theirs, name))} / {_shown(_median(cell.ours, name))}"
            for name in ("texts_per_s", "p50_ms", "p99_ms", "outside_ms")
        ]
        ratio = f"{statistics.median(cell.ratios):.2f}"
        lines.append(" | ".join([f"| {cell.scheme}", str(cell.concurrency), *pairs, f"{ratio} |"]))
    return "\n".join(lines)


def in_words(cell: Comparison) -> str:
    """Return how close the two are in texts/s, and where the difference is."""
    ratio, least, most = statistics.median(cell.ratios), min(cell.ratios), max(cell.ratios)
    words = (
        f"{cell.scheme}, {cell.concurrency} at a time: ours counts {ratio:.2f} x perf_analyzer's"
    )
    words += f" texts/s ({least:.2f} to {most:.2f} over {len(cell.ratios)} rounds)"
    if abs(ratio - 1) < _NEAR:
        return f"{words}: they agree."
    if least <= 1 <= most:
        return f"{words}: the rounds differ by more than the two do."
    theirs, ours = (_median(rounds, "outside_ms") for rounds in (cell.theirs, cell.ours))
    if theirs is None or ours is None:
        return f"{words}."
    words += (
        f"; outside the server a call takes {ours:.1f} ms under ours, {theirs:.1f} ms under its"
    )
    if ratio < 1 and ours > theirs:
        words += (
            ": its client is C++, ours Python, which takes more of cores that the server shares"
        )
    return f"{words}."


def _median(rounds: Sequence[Measurement], name: str) -> float | None:
    values = [getattr(measurement, name) for measurement in rounds]
    return None if None in values else float(statistics.median(values))


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1f}"
