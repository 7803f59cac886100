"""What was measured on a GPU: tables for people, a CSV for programs, a picture, the targets."""

import dataclasses
import datetime
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import measuring
import numpy as np
import torch
from gpu_timing import Ceilings
from gpu_work import Work

CSV_HEADINGS = (
    *("part", "what", "shape", "dtype", "engine", "ms", "least_ms", "most_ms", "rounds"),
    *("latency_ms", "operations", "bytes", "gb_s", "tflop_s", "error", "cosine", "problem"),
)
NAME = "gpu"
ROOFLINE = "gpu_roofline"
GRAPH = "Bertron, CUDA graph"
COMPILED = "torch.compile max-autotune"
UNIFORM, REAL, ONE_TEXT = "32 x 128", "32 real texts", "1 x 128"
DTYPE = "float16"
MARKERS = {"float16": "o", "bfloat16": "x"}  # of the roofline


@dataclasses.dataclass
class Row:
    """One engine at one shape.

    Attributes:
        part: ``kernels``, ``models``, ``tune`` or ``served``.
        what: The op or the model.
        engine: Ours or a peer.
        work: The least that must be done; None where nobody counted.
        is_ours: A wrong result is a failure of the whole run.
        error: Relative to float64.
        cosine: Smallest of any text with float64, of models.
        times_ms: Of one call among many in a row; empty where ``problem`` says why.
        latencies_ms: Of one call alone, of models; of each call under load, served.
        note: What else is to be said under the table.
    """

    part: str
    what: str
    shape: str
    dtype: str
    engine: str
    work: Work | None = None
    is_ours: bool = False
    error: float | None = None
    cosine: float | None = None
    times_ms: list[float] = dataclasses.field(default_factory=list)
    latencies_ms: list[float] = dataclasses.field(default_factory=list)
    problem: str = ""
    note: str = ""

    @property
    def failed(self) -> bool:
        """Whether our own code is wrong, or broke."""
        return self.is_ours and bool(self.problem)

    @property
    def ms(self) -> float | None:
        """The median time, or None: what is wrong has none."""
        return statistics.median(self.times_ms) if self.times_ms and not self.problem else None

    @property
    def latency_ms(self) -> float | None:
        """The median of one call alone, likewise."""
        if self.problem or not self.latencies_ms:
            return None
        return statistics.median(self.latencies_ms)

    @property
    def gb_s(self) -> float | None:
        """Achieved, of the bytes that must move."""
        if self.ms is None or self.work is None or not self.work.bytes:
            return None
        return self.work.giga_bytes_per_s(self.ms)

    @property
    def tflop_s(self) -> float | None:
        """Achieved, of the operations that must be done."""
        return None if self.ms is None or self.work is None else self.work.tera_per_s(self.ms)


def find(
    rows: Iterable[Row], part: str, what: str, shape: str, engine: str, dtype: str = DTYPE
) -> Row | None:
    """The row, by the beginning of its shape; the first of several."""
    for row in rows:
        is_it = (row.part, row.what, row.engine, row.dtype) == (part, what, engine, dtype)
        if is_it and (row.shape == shape or row.shape.startswith(f"{shape}, ")):
            return row
    return None


@dataclasses.dataclass(frozen=True)
class Target:
    """What was aimed at, and what was found.

    Attributes:
        least: Whether ``bound`` is the least or the most.
        found: None where it was not measured.
    """

    what: str
    bound: float
    unit: str
    found: float | None
    least: bool = True

    @property
    def verdict(self) -> str:
        """``reached``, ``not reached`` or ``not measured``."""
        if self.found is None:
            return "not measured"
        good = self.found >= self.bound if self.least else self.found <= self.bound
        return "reached" if good else "not reached"


def targets(rows: Sequence[Row], ceilings: Ceilings) -> list[Target]:
    """All of them, fp16. A batch of 32 counts in a row of calls, a single text from call to end."""

    def model(name: str, shape: str, engine: str = GRAPH) -> Row | None:
        return find(rows, "models", name, shape, engine)

    def kernel(op: str, shape: str) -> Row | None:
        return find(rows, "kernels", op, shape, "Bertron")

    base = model("BERT-base", UNIFORM)
    many, few, norm = (
        kernel("varlen_attention", "32 x 512, 12 heads of 64"),
        kernel("varlen_attention", "128 x 128, 12 heads of 64"),
        kernel("add_layer_norm", "16384 x 768"),
    )
    return [
        Target("BERT-base, 32 x 128", 1.4, "ms", base.ms if base else None, least=False),
        Target(
            "BERT-base, 32 x 128, against torch.compile",
            1.3,
            "x",
            ratio(base, model("BERT-base", UNIFORM, COMPILED)),
        ),
        Target(
            "BERT-base, 32 real texts, against torch.compile",
            2.5,
            "x",
            ratio(model("BERT-base", REAL), model("BERT-base", REAL, COMPILED)),
        ),
        Target(
            "BERT-base, 1 x 128", 0.3, "ms", _latency(model("BERT-base", ONE_TEXT)), least=False
        ),
        Target(
            "MiniLM-L6, 1 x 128", 0.12, "ms", _latency(model("MiniLM-L6", ONE_TEXT)), least=False
        ),
        Target("attention, head_dim 64, S = 512", 340, "TFLOP/s", many.tflop_s if many else None),
        Target("attention, head_dim 64, S = 128", 200, "TFLOP/s", few.tflop_s if few else None),
        Target("or of the copy's rate", 70, "%", percent_of_copy(few, ceilings)),
        Target("add_layer_norm, of the copy's rate", 80, "%", percent_of_copy(norm, ceilings)),
    ]


def _latency(row: Row | None) -> float | None:
    return row.latency_ms if row else None


def ratio(ours: Row | None, base: Row | None) -> float | None:
    """How many times as fast as ``base``, round by round; None where either has no time."""
    if ours is None or base is None or ours.ms is None or base.ms is None:
        return None
    if len(ours.times_ms) == len(base.times_ms):
        return measuring.ratio(base.times_ms, ours.times_ms)
    return base.ms / ours.ms


def percent_of_copy(row: Row | None, ceilings: Ceilings) -> float | None:
    """Achieved bandwidth, in per cent of the copy's."""
    if row is None or row.gb_s is None:
        return None
    return 100 * row.gb_s / ceilings.copy_gb_s


def percent_of_product(row: Row, ceilings: Ceilings) -> float | None:
    """Achieved operations, in per cent of the large product's in the same dtype."""
    ceiling = ceilings.product_tflop_s.get(row.dtype)
    return None if ceiling is None or row.tflop_s is None else 100 * row.tflop_s / ceiling


def kernel_table(rows: Sequence[Row], ceilings: Ceilings) -> str:
    """A line a way to compute an op."""
    cells = [
        [
            *(f"{row.what}, {row.shape}", row.dtype, row.engine),
            _time(row, 1e3),
            *(_number(row.gb_s, 0), _number(percent_of_copy(row, ceilings), 0)),
            *(_number(row.tflop_s, 1), _number(percent_of_product(row, ceilings), 0)),
            _exponent(row.error),
        ]
        for row in rows
    ]
    headings = ["op", "dtype", "by", "us", "GB/s", "% copy", "TFLOP/s", "% product", "error"]
    return measuring.table(headings, cells)


def model_table(rows: Sequence[Row], ceilings: Ceilings) -> str:
    """A line an engine; the ratio says how many times as fast our graph is."""
    cells = []
    for row in rows:
        ours = next(
            (
                other
                for other in rows
                if other.engine == GRAPH
                and (other.what, other.shape, other.dtype) == (row.what, row.shape, row.dtype)
            ),
            None,
        )
        cells.append(
            [
                *(f"{row.what}, {row.shape}", row.dtype, row.engine),
                *(_time(row, 1), _number(row.latency_ms, 3)),
                _number(ratio(ours, row), 2),
                *(_number(row.tflop_s, 1), _number(percent_of_product(row, ceilings), 0)),
                *(_exponent(row.error), "" if row.cosine is None else f"{row.cosine:.7f}"),
            ]
        )
    headings = [
        *("model", "dtype", "by", "ms in a row", "ms alone", "graph is x as fast"),
        *("TFLOP/s", "% product", "error", "smallest cosine"),
    ]
    return measuring.table(headings, cells)


def served_table(rows: Sequence[Row], _ceilings: Ceilings) -> str:
    """A line a load, then where its requests' time goes; a row's time is that of one text."""
    cells = [
        [
            *(f"{row.what}, {row.shape}", row.dtype, row.engine),
            f"{1e3 / row.ms:.0f}" if row.ms else _time(row, 1),
            *(_percentile(row, 50), _percentile(row, 99)),
            "" if row.cosine is None else f"{row.cosine:.7f}",
        ]
        for row in rows
    ]
    headings = ["model", "dtype", "by", "texts/s", "p50 ms", "p99 ms", "smallest cosine"]
    notes = [
        f"- {row.shape}, {row.engine}, a request's mean: {row.note}." for row in rows if row.note
    ]
    return "\n".join([measuring.table(headings, cells), "", *notes])


def _percentile(row: Row, percent: int) -> str:
    if row.problem or not row.latencies_ms:
        return ""
    return f"{np.percentile(row.latencies_ms, percent):.2f}"


def target_table(found: Sequence[Target]) -> str:
    """What was aimed at beside what was reached."""
    cells = [
        [
            target.what,
            f"{'>=' if target.least else '<='} {target.bound:g} {target.unit}",
            "" if target.found is None else f"{target.found:.3g}",
            target.verdict,
        ]
        for target in found
    ]
    return measuring.table([f"{DTYPE}", "target", "measured", ""], cells)


def _time(row: Row, factor: float) -> str:
    if row.ms is None:
        return f"FAILED: {row.problem}" if row.failed else row.problem
    return measuring.spread([factor * ms for ms in row.times_ms])


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _exponent(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def csv_lines(rows: Iterable[Row]) -> list[list[object]]:
    """For programs."""
    lines: list[list[object]] = []
    for row in rows:
        times = row.times_ms if row.ms is not None else []
        lines.append(
            [
                *(row.part, row.what, row.shape, row.dtype, row.engine),
                *(_full(row.ms), _full(min(times, default=None)), _full(max(times, default=None))),
                *(len(times), _full(row.latency_ms)),
                *(
                    (f"{row.work.operations:.0f}", f"{row.work.bytes:.0f}")
                    if row.work
                    else ("", "")
                ),
                *(_full(row.gb_s), _full(row.tflop_s), _full(row.error)),
                *("" if row.cosine is None else f"{row.cosine:.9f}", row.problem),
            ]
        )
    return lines


def _full(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def setting(ceilings: Ceilings, commit: str | None) -> str:
    """GPU, ceilings, date, commit and versions, for under the tables."""
    import transformers
    import triton

    products = ", ".join(
        f"{rate:.0f} TFLOP/s in a {dtype} matrix product"
        for dtype, rate in ceilings.product_tflop_s.items()
    )
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    source = f"commit {commit}" if commit else measuring.commit()
    return (
        f"{torch.cuda.get_device_name(0)}, driver {_driver()}; {today}, {source}; "
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"triton {triton.__version__}, transformers {transformers.__version__}. "
        f"Ceilings of this run: {ceilings.copy_gb_s:.0f} GB/s in a copy, read and written, "
        f"{products}. L2: {ceilings.l2_bytes / 2**20:.0f} MB."
    )


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.split()[0] if done.stdout.strip() else "unknown"


def draw_roofline(rows: Sequence[Row], ceilings: Ceilings, directory: Path) -> str:
    """``gpu_roofline.svg`` and ``.png`` of our kernels; says in a sentence why there is none."""
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return "No roofline was drawn: matplotlib is not installed."
    drawn = [
        row
        for row in rows
        if row.part == "kernels" and row.is_ours and row.dtype in MARKERS and row.gb_s is not None
    ]
    if not drawn or DTYPE not in ceilings.product_tflop_s:
        return "No roofline was drawn: no kernel was timed."
    top = ceilings.product_tflop_s[DTYPE]
    ridge = 1e3 * top / ceilings.copy_gb_s  # operations a byte at which both ceilings meet
    figure, axes = plt.subplots(figsize=(9, 6))
    edges = [0.5, ridge, 20 * ridge]
    axes.plot(edges, [min(top, x * ceilings.copy_gb_s / 1e3) for x in edges], color="black")
    for number, op in enumerate(dict.fromkeys(row.what for row in drawn)):
        for dtype, marker in MARKERS.items():
            own = [row for row in drawn if (row.what, row.dtype) == (op, dtype)]
            if own:
                axes.plot(
                    [row.work.intensity for row in own if row.work],
                    [row.tflop_s for row in own],
                    marker,
                    color=f"C{number}",
                    label=f"{op}, {dtype}",
                )
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="TFLOP/s")
    axes.set_title(f"{ceilings.copy_gb_s:.0f} GB/s copied, {top:.0f} TFLOP/s in a product")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    figure.tight_layout()
    for kind in ("svg", "png"):
        figure.savefig(directory / f"{ROOFLINE}.{kind}", dpi=130)
    plt.close(figure)
    return f"![]({ROOFLINE}.svg)"


class Report:
    """Everything so far, written anew after each part: an interrupted run leaves what it had.

    Args:
        directory: Where the files go.
        ceilings: Of this run.
        commit: What was measured, where the directory is no checkout.
    """

    def __init__(self, directory: Path, ceilings: Ceilings, commit: str | None) -> None:
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self.frozen: list[str] = []
        self._directory = directory
        self._ceilings = ceilings
        self._setting = setting(ceilings, commit)

    def add(self, row: Row) -> None:
        """Take a row, and say it."""
        self.rows.append(row)
        shown = _time(row, 1) or "no time"
        sys.stderr.write(f"{row.what}, {row.shape}, {row.dtype}, {row.engine}: {shown} ms\n")

    @property
    def failed(self) -> list[Row]:
        """Rows of ours that are wrong or broke."""
        return [row for row in self.rows if row.failed]

    def write(self) -> str:
        """Write Markdown, CSV and picture.

        Returns:
            What a terminal shows: the tables, short ones last.
        """
        directory, ceilings = self._directory, self._ceilings
        directory.mkdir(parents=True, exist_ok=True)
        parts = ["# On a GPU\n"]
        for part, title, make in (
            ("kernels", "Kernels", kernel_table),
            ("models", "Models", model_table),
            ("served", "Served", served_table),
        ):
            own = [row for row in self.rows if row.part == part]
            if own:
                parts.append(f"## {title}\n\n{make(own, ceilings)}\n")
        parts.append(draw_roofline(self.rows, ceilings, directory) + "\n")
        if self.frozen:
            listing = "\n".join(self.frozen)
            parts.append(f"## For the frozen tables\n\n```python\n{listing}\n```\n")
        parts.append(f"## Targets\n\n{target_table(targets(self.rows, ceilings))}\n")
        if self.failed:
            named = "\n".join(
                f"- FAILED: {row.what}, {row.shape}, {row.dtype}, {row.engine}: {row.problem}"
                for row in self.failed
            )
            parts.append(named + "\n")
        parts += [*(f"{note}\n" for note in self.notes), f"{self._setting}\n"]
        text = "\n".join(parts)
        measuring.write_results(directory, NAME, text, CSV_HEADINGS, csv_lines(self.rows))
        return text
