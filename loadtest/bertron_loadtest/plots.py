"""The pictures of a report. Importing this takes a second; a load generator need not.

Times are seconds since the run's first phase began. The colours are those of Okabe and Ito, which
colour-blind readers can tell apart; on a page they follow its light or dark theme.
"""

import contextlib
import io
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
)
from numpy.typing import NDArray

from bertron_loadtest import counters
from bertron_loadtest.figures import (
    SERVER_PARTS,
    Figures,
    done_by,
    measured_span,
    percentile,
    process_names,
)
from bertron_loadtest.phases import WARM_UP, PhaseRecord
from bertron_loadtest.run_record import Run
from bertron_loadtest.samples import Outcome

# Drawn in these, and on a page replaced by the CSS variables of the same names.
INK, FAINT = "#222324", "#c9cacb"
BLUE, ORANGE, GREEN, RED = "#0072b2", "#e69f00", "#009e73", "#d55e00"
SKY, PURPLE = "#56b4e9", "#cc79a7"
CSS_VARIABLES = {
    INK: "--ink",
    FAINT: "--faint",
    BLUE: "--blue",
    ORANGE: "--orange",
    GREEN: "--green",
    RED: "--red",
    SKY: "--sky",
    PURPLE: "--purple",
}
_CYCLE = (BLUE, ORANGE, GREEN, PURPLE, RED, SKY)

_WIDTH_IN = 6.4  # at which the letters can be read on a phone, two pictures fit on a screen
_MOST_BINS = 240  # in a picture over time; more are narrower than a line
_BIN_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600)
_LOGARITHMIC_FROM = 30  # times the smallest; below, a linear axis shows both
_NARROW = 10  # a logarithmic axis up to so many times its smallest has room for more numbers
_STYLE = {
    "svg.fonttype": "none",  # letters stay letters: small, sharp, and found by a search
    "svg.hashsalt": "bertron",  # else ids are random
    "font.size": 9.0,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.facecolor": "none",  # the page's own, light or dark
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.color": FAINT,
    "ytick.labelcolor": INK,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Draw and write within it; matplotlib's settings are afterwards as before."""
    with mpl.rc_context(_STYLE):
        yield


def svg_of(figure: Figure, name: str) -> str:
    """Return a figure as an ``<svg>`` element for a page.

    Equal figures give equal text. ``name`` keeps its ids apart from those of the page's others.
    """
    text = _written(figure, "none")
    start, rest = text[text.index("<svg") :].split(">", 1)
    start = re.sub(r' (width|height)="[^"]*"', "", start)  # as wide as the page has room
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", f"{start}>{rest}")
    for colour, variable in CSS_VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text


def write_svg(figure: Figure, path: Path) -> None:
    """Write a figure as a file of its own, on white."""
    path.write_text(_written(figure, "white"), encoding="utf-8")


def _written(figure: Figure, background: str) -> str:
    buffer = io.StringIO()
    # Without a date, equal figures give equal files.
    figure.savefig(buffer, format="svg", metadata={"Date": None}, facecolor=background)
    return buffer.getvalue()


def over_time(run: Run) -> Figure:
    """Throughput, latencies, and where there are any, calls that were refused or failed."""
    is_not_right = run.samples.outcome != Outcome.RIGHT
    rows = 3 if is_not_right.any() else 2
    figure, panels = _panels(rows, 1.65 * rows)
    edges, begin_s = _bins(run), _begin(run)
    middles = (edges[:-1] + edges[1:]) / 2 - begin_s
    width_s = edges[1] - edges[0]
    panels[0].plot(middles, _throughput(run, edges), color=BLUE)
    panels[0].set_ylabel("texts/s")
    _from_zero(panels[0])
    _plot_latencies(panels[1], run, edges, middles)
    if rows == 3:
        is_refused = run.samples.outcome == Outcome.REFUSED
        for label, colour, chosen in (
            ("refused", ORANGE, is_refused),
            ("wrong, lost or failed", RED, is_not_right & ~is_refused),
        ):
            counts, _ = np.histogram(run.samples.end_s[chosen], edges)
            if chosen.any():
                panels[2].plot(middles, counts / width_s, color=colour, label=label)
        panels[2].set_ylabel("calls/s")
        _from_zero(panels[2])
        _legend(panels[2])
    for panel in panels:
        _mark_phases(panel, run)
    _name_phases(panels[0], run)
    _seconds(panels[-1], edges[-1] - begin_s)
    return figure


def latency_distribution(latencies_ms: Mapping[str, NDArray[np.float64]]) -> Figure | None:
    """The share of calls answered by a time, a curve each; None where there is no call.

    Args:
        latencies_ms: By the curve's name; those without a value are left out.
    """
    known = {name: np.sort(values) for name, values in latencies_ms.items() if len(values)}
    if not known:
        return None
    figure, (panel,) = _panels(1, 3.2)
    _plot_distributions(panel, known)
    return figure


def where_time_went(figures: Mapping[str, Figures]) -> Figure | None:
    """Bars of a call's mean time by where it passed; None where nothing of it is known."""
    parts = {
        "network_ms": ("network and client", FAINT),
        "tokenizer_queue_ms": ("tokenizer: waiting", SKY),
        "tokenizer_ms": ("tokenizer", BLUE),
        "between_steps_ms": ("between the steps", PURPLE),
        "bert_queue_ms": ("bert: waiting", ORANGE),
        "bert_ms": ("bert", RED),
    }
    known = {
        name: found
        for name, found in figures.items()
        if all(found[part] is not None for part in SERVER_PARTS)
    }
    if not known:
        return None
    whole = "a call's mean time"
    if any(found["network_ms"] is None for found in known.values()):
        whole = "a request's mean time in the server"
        del parts["network_ms"]
    times_ms = np.array([[found[part] or 0.0 for part in parts] for found in known.values()])
    times_ms = np.maximum(times_ms, 0.0)  # a difference of means may be a little below
    totals_ms = np.maximum(times_ms.sum(1), 1e-9)
    figure, (panel,) = _panels(1, 1.1 + 0.32 * len(known))
    left = np.zeros(len(known))
    for (label, colour), share in zip(parts.values(), (times_ms.T / totals_ms), strict=True):
        panel.barh(list(known), share, left=left, color=colour, label=label, height=0.62)
        left += share
    for row, total_ms in enumerate(totals_ms):
        panel.text(1.01, row, f"{_plain(total_ms)} ms", va="center")
    panel.invert_yaxis()
    panel.xaxis.set_major_formatter(PercentFormatter(1))
    panel.set(xlim=(0, 1), xlabel=f"of {whole}, which is on the right")
    panel.grid(visible=False)
    panel.spines[["left", "bottom"]].set_visible(False)
    panel.tick_params(length=0)
    figure.legend(loc="outside upper left", ncols=3)
    return figure


def batches(by_texts: Mapping[int, int], by_tokens: Mapping[float, int]) -> Figure | None:
    """How large ``bert``'s batches were; None where that is not known."""
    if not by_texts and not by_tokens:
        return None
    figure = Figure(figsize=(_WIDTH_IN, 2.7), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _bars(left, "texts in a batch", by_texts)
    edges = list(by_tokens)
    names = {edge: f"{edge:.0f}" if np.isfinite(edge) else "more" for edge in edges}
    filled = [index for index, edge in enumerate(edges) if by_tokens[edge]] or [0]
    shown = edges[filled[0] : filled[-1] + 1]
    _bars(right, "tokens in a batch, up to", {edge: by_tokens[edge] for edge in shown}, names)
    left.set_ylabel("of batches")
    return figure


def processes_over_time(run: Run) -> Figure | None:
    """CPU and memory of each process; None where none was seen."""
    names = process_names(run)
    if not names:
        return None
    figure, panels = _panels(2, 3.6)
    begin_s = _begin(run)
    for name, colour in zip(names, _cycle(len(names)), strict=True):
        times, used_s = counters.readings(run, counters.cpu_s(name))
        cores = np.diff(used_s) / np.maximum(np.diff(times), 1e-9)
        cores[cores < 0] = np.nan  # it began anew
        middles = (times[:-1] + times[1:]) / 2 - begin_s
        panels[0].plot(middles, cores, color=colour, label=name)
        times, held_mb = counters.readings(run, counters.memory_mb(name))
        panels[1].plot(times - begin_s, held_mb, color=colour)
    panels[0].set_ylabel("CPU cores")
    panels[1].set_ylabel("memory, MB")
    _seconds(panels[1], _end(run) - begin_s)
    for panel in panels:
        _from_zero(panel)
        _mark_phases(panel, run)
    figure.legend(loc="outside upper left", ncols=min(len(names), 5))
    return figure


def saturation(steps: Mapping[str, Figures]) -> Figure | None:
    """Latency over throughput, a point for each step of a ramp; None where no step has both.

    Args:
        steps: Figures by what a step's points are labelled with.
    """
    known = {name: found for name, found in steps.items() if found["p50_ms"] is not None}
    rates = [found["texts_per_s"] or 0.0 for found in known.values()]
    if not known:
        return None
    shares = [found["refused_share"] or 0.0 for found in known.values()]
    figure = Figure(figsize=(_WIDTH_IN, 4.2), layout="constrained")
    panel, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    shown: list[float] = []
    for key, colour, marker in (
        ("p99_ms", RED, "^"),
        ("p95_ms", ORANGE, "s"),
        ("p50_ms", BLUE, "o"),
    ):
        values = [found[key] or 0.0 for found in known.values()]
        panel.plot(rates, values, color=colour, marker=marker, markersize=4, label=key[:3])
        shown += values
    for name, rate, p99_ms in zip(known, rates, shown, strict=False):
        panel.annotate(name, (rate, p99_ms), (-6, 3), textcoords="offset points", ha="right")
    panel.set(ylabel="latency, ms", yscale="log", ylim=(None, 1.5 * max(*shown, 1e-9)))
    _plain_log(panel.yaxis, shown)
    _legend(panel)
    below.bar(rates, shares, width=max(rates) / 80, color=ORANGE)
    below.set(ylabel="refused", xlabel="texts/s", xlim=(0, 1.05 * max(*rates, 1e-9)))
    below.set_ylim(0, max(*shares, 0.01))
    below.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for one in (panel, below):
        one.grid(visible=True)
    return figure


def side_by_side(
    runs: Mapping[str, tuple[Run, PhaseRecord | None]],
    latencies_ms: Mapping[str, NDArray[np.float64]],
) -> Figure:
    """Throughput since a phase's begin, and the distribution of latencies, a curve for each run."""
    figure = Figure(figsize=(_WIDTH_IN, 4.6), layout="constrained")
    above, below = figure.subplots(2, 1)
    longest_s = 0.0
    for (name, (run, phase)), colour in zip(runs.items(), _CYCLE, strict=False):
        start_s, end_s = measured_span(run, phase)
        edges = _edges(start_s, end_s)
        middles = (edges[:-1] + edges[1:]) / 2 - start_s
        above.plot(middles, _throughput(run, edges), color=colour, label=name)
        longest_s = max(longest_s, end_s - start_s)
    above.set_ylabel("texts/s")
    _seconds(above, longest_s)
    _from_zero(above)
    above.grid(visible=True)
    _legend(above)
    known = {name: np.sort(values) for name, values in latencies_ms.items() if len(values)}
    colours = dict(zip(latencies_ms, _CYCLE, strict=False))
    _plot_distributions(below, known, colours)
    return figure


def _panels(rows: int, height_in: float) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
    panels = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    for panel in panels:
        panel.grid(visible=True)
    return figure, list(panels)


def _plot_latencies(
    panel: Axes, run: Run, edges: NDArray[np.float64], middles: NDArray[np.float64]
) -> None:
    right = run.samples.outcome == Outcome.RIGHT
    latencies_ms, ends = 1e3 * run.samples.latency_s[right], run.samples.end_s[right]
    borders = np.searchsorted(ends, edges)
    groups = [latencies_ms[a:b] for a, b in itertools.pairwise(borders)]
    shown: list[float] = []
    for percent, colour in ((99, RED), (50, BLUE)):
        values = [percentile(group, percent) for group in groups]
        shown += [value for value in values if value is not None]
        known = [np.nan if value is None else value for value in values]
        panel.plot(middles, known, color=colour, label=f"p{percent}")
    _scale_latencies(panel, shown)
    _legend(panel)


def _scale_latencies(panel: Axes, shown: Sequence[float]) -> None:
    panel.set_ylabel("latency, ms")
    if shown and max(shown) > _LOGARITHMIC_FROM * min(shown) > 0:
        panel.set_yscale("log")
        _plain_log(panel.yaxis, shown)
    else:
        _from_zero(panel)


def _plot_distributions(
    panel: Axes,
    known: Mapping[str, NDArray[np.float64]],
    colours: Mapping[str, str] | None = None,
) -> None:
    """Of sorted latencies; without colours the curves are shades of one."""
    opacities = np.linspace(0.35, 1, len(known)) if len(known) > 1 else [1.0]
    for (name, values), opacity in zip(known.items(), opacities, strict=True):
        # A step for each of many thousands of calls is a large file and the same picture.
        ranks = np.unique(
            np.linspace(0, len(values) - 1, min(len(values), 500)).round().astype(int)
        )
        panel.plot(
            values[ranks],
            (ranks + 1) / len(values),
            color=colours[name] if colours else BLUE,
            alpha=1.0 if colours else opacity,
            label=name,
            drawstyle="steps-post",
        )
    panel.set(xscale="log", xlabel="latency, ms", ylabel="of calls", ylim=(0, 1.02))
    _plain_log(panel.xaxis, [value for values in known.values() for value in values[[0, -1]]])
    panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    panel.grid(visible=True)
    if len(known) > 1 and not colours:
        _legend(panel)


def _bars(
    panel: Axes,
    label: str,
    counts: Mapping[int, int] | Mapping[float, int],
    names: Mapping[float, str] | None = None,
) -> None:
    """Shares; a category each where there are names, else numbers on an axis."""
    total = max(sum(counts.values()), 1)
    shares = [count / total for count in counts.values()]
    if names is None:
        panel.bar(list(counts), shares, color=BLUE, width=0.9)
        panel.set_xlim(0, max(counts, default=1) + 1)
    else:
        panel.bar([names[edge] for edge in counts], shares, color=BLUE, width=0.9)
        panel.margins(x=max(0.05, 0.4 - 0.1 * len(counts)))  # two bars need not fill it
        panel.tick_params(axis="x", labelrotation=45 if len(counts) > 6 else 0)
    panel.set_xlabel(label)
    panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    panel.grid(visible=True, axis="y")


def _throughput(run: Run, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    texts = np.where(run.samples.outcome == Outcome.RIGHT, run.samples.texts, 0)
    done = np.diff(done_by(run.samples, texts, edges.tolist()))
    rates: NDArray[np.float64] = done / np.diff(edges)
    return rates


def _begin(run: Run) -> float:
    if run.phases:
        return run.phases[0].start_s
    return float(run.samples.due_s.min()) if len(run.samples) else 0.0


def _end(run: Run) -> float:
    """When the last phase was over; calls that end later are in no bin."""
    if run.phases:
        return run.phases[-1].end_s
    return float(run.samples.end_s.max()) if len(run.samples) else 1.0


def _bins(run: Run) -> NDArray[np.float64]:
    return _edges(_begin(run), _end(run))


def _edges(start_s: float, end_s: float) -> NDArray[np.float64]:
    """Edges of bins of whole seconds; the last, which is shorter, is left out if there are more."""
    seconds = max(end_s - start_s, 1e-3)
    width_s = next((width for width in _BIN_S if seconds / width <= _MOST_BINS), _BIN_S[-1])
    if seconds < 2 * width_s:
        return np.array([start_s, start_s + seconds])
    return start_s + width_s * np.arange(int(seconds / width_s + 1e-6) + 1)


def _mark_phases(panel: Axes, run: Run) -> None:
    begin_s = _begin(run)
    for phase in run.phases[1:]:
        panel.axvline(phase.start_s - begin_s, color=INK, linewidth=0.6, linestyle=(0, (1, 2)))
    for phase in run.phases:
        if phase.name == WARM_UP:
            panel.axvspan(
                phase.start_s - begin_s, phase.end_s - begin_s, color=FAINT, alpha=0.35, linewidth=0
            )


def _name_phases(panel: Axes, run: Run) -> None:
    """Above the panel, in the middle of each."""
    begin_s = _begin(run)
    numbers = [phase for phase in run.phases if phase.name.endswith(" users")]
    for phase in run.phases:
        name = phase.name
        if name == WARM_UP and len(run.phases) > 2:
            continue  # it is shorter than its name
        if len(numbers) > 1 and phase is not numbers[-1]:
            name = name.removesuffix(" users")
        middle_s = (phase.start_s + phase.end_s) / 2 - begin_s
        panel.text(
            middle_s, 1.02, name, transform=panel.get_xaxis_transform(), ha="center", va="bottom"
        )


def _legend(panel: Axes) -> None:
    """Above the panel, where nothing is drawn."""
    count = len(panel.get_legend_handles_labels()[0])
    if count:
        place = {"loc": "lower right", "bbox_to_anchor": (1.0, 0.98), "borderaxespad": 0.0}
        panel.legend(**place, ncols=min(count, 4))


def _from_zero(panel: Axes) -> None:
    panel.set_ylim(0, 1.08 * max(panel.dataLim.y1, 1e-9))


def _seconds(panel: Axes, longest_s: float) -> None:
    panel.set(xlabel="seconds", xlim=(0, longest_s))
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def _plain_log(axis: Axis, shown: Sequence[float]) -> None:
    """Label a logarithmic axis with plain numbers, as many as there is room for."""
    is_narrow = not shown or max(shown) < _NARROW * min(shown)
    axis.set_major_locator(LogLocator(subs=(1, 2, 3, 4, 5, 6, 8) if is_narrow else (1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _plain(value)))
    axis.set_minor_formatter(NullFormatter())


def _cycle(count: int) -> list[str]:
    return [_CYCLE[index % len(_CYCLE)] for index in range(count)]


def _plain(value: float) -> str:
    """A number as people write it: no powers of ten."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
