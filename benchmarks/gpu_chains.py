"""One text through whole models, by what serves now, by other products, and overlapped.

A kernel alone says little of a chain of dozens: what its neighbours leave in the caches, and how
long the chip takes from one to the next, shows in whole models only.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch
from bertron_kernels import gpu_linear, overlap
from bertron_kernels.gemm import GemmTile
from gpu_models import Batch, Engine, Subject, graph_engine
from gpu_report import Row

PART = "tune"
AS_NOW, FOUND, OVERLAPPED = ENGINES = ("as now", "products found", "products found, overlapped")
MODELS = ("BERT-base", "MiniLM-L6")
TOKENS = (128, 16, 32, 64, 256)
DTYPE = "float16"
COMPILE_S = 60
# Two timings of one chain differ by about this much.
LEAST_GAIN = 1.02


@dataclasses.dataclass
class Tables:
    """The kernels' frozen tables as a run would change them.

    Attributes:
        products: In place of ``gpu_linear.MEASURED``.
        overlapped: In place of ``overlap.OVERLAPPED_TOKENS``; None leaves that.
    """

    products: dict[tuple[str, int, int, int, int], GemmTile]
    overlapped: dict[int, int] | None = None

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """What is launched meanwhile, or captured, goes by these."""
        before = gpu_linear.MEASURED, overlap.OVERLAPPED_TOKENS
        gpu_linear.MEASURED = self.products
        if self.overlapped is not None:
            overlap.OVERLAPPED_TOKENS = self.overlapped
        try:
            yield
        finally:
            gpu_linear.MEASURED, overlap.OVERLAPPED_TOKENS = before


def captured_with(tables: Tables, engine: Engine) -> Engine:
    """``engine`` prepared under ``tables``: a graph keeps what it was captured with."""

    def prepared(batch: Batch) -> Callable[[], object]:
        with tables.in_use():
            return engine(batch)

    return prepared


def engines_of(engine: Engine, architecture: int, tokens: int, tables: Tables) -> dict[str, Engine]:
    """Each of ENGINES."""
    overlapped = dataclasses.replace(tables, overlapped={architecture: tokens})
    return {
        AS_NOW: engine,
        FOUND: captured_with(tables, engine),
        OVERLAPPED: captured_with(overlapped, engine),
    }


def most_overlapped_tokens(rows: Sequence[Row]) -> int:
    """Up to so many tokens overlapping gains on every model; 0 where it does on none.

    ``rows`` are of several models, each of a text of some of TOKENS.
    """
    most = 0
    for tokens in sorted(TOKENS):
        own = [row for row in rows if row.shape == shape_of(tokens)]
        found = {row.what: row.ms for row in own if row.engine == FOUND}
        overlapped = {row.what: row.ms for row in own if row.engine == OVERLAPPED}
        for model, ms in found.items():
            overlapped_ms = overlapped.get(model)
            if ms is None or overlapped_ms is None or ms < LEAST_GAIN * overlapped_ms:
                return most
        if not found:
            return most
        most = tokens
    return most


def shape_of(tokens: int) -> str:
    """For a table."""
    return f"1 x {tokens}"


def measure_all(
    device: torch.device,
    architecture: int,
    tables: Tables,
    add: Callable[[Row], None],
    paste: Callable[[str], None],
) -> None:
    """Every model at every length; the caller holds the time."""
    rows: list[Row] = []
    for name in MODELS:
        subject = Subject(name, device)
        try:
            engine = graph_engine(subject.ours(DTYPE))
            for tokens in TOKENS:
                batch = subject.batch(shape_of(tokens), [tokens])
                engines = engines_of(engine, architecture, tokens, tables)
                for row in subject.measure(DTYPE, batch, engines, COMPILE_S):
                    row.part, row.is_ours = PART, True
                    rows.append(row)
                    add(row)
        finally:
            subject.close()
    times = {(row.what, row.shape, row.engine): row.ms for row in rows}
    for name in MODELS:
        for tokens in TOKENS:
            found = [times.get((name, shape_of(tokens), engine)) for engine in ENGINES]
            shown = ", ".join(
                f"{engine} {ms:.4f}" if ms else f"{engine} no time"
                for engine, ms in zip(ENGINES, found, strict=True)
            )
            paste(f"# {name}, {shape_of(tokens)}, ms in a row: {shown}")
    paste(f"OVERLAPPED_TOKENS = {{{architecture}: {most_overlapped_tokens(rows)}}}")
