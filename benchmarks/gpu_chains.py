"""Batches through whole models, by what serves now, by other products, and overlapped.

A kernel alone says little of a chain of dozens: what its neighbours leave in the caches, and how
long the chip takes from one to the next, shows in whole models only. An overlapped chain is whole
only where every product is ours, also where cuBLAS's alone would be quicker.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from bertron_kernels import gpu_linear, overlap
from bertron_kernels.gemm import GemmTile
from gpu_models import Batch, Engine, Subject, graph_engine
from gpu_report import Row

PART = "tune"
AS_NOW = "as now"
FOUND, FOUND_OVERLAPPED = "products found", "products found, overlapped"
OURS, OURS_OVERLAPPED = "all products ours", "all products ours, overlapped"
ENGINES = (AS_NOW, FOUND, FOUND_OVERLAPPED, OURS, OURS_OVERLAPPED)
MODELS = ("BERT-base", "MiniLM-L6")
# (texts, tokens of each): what the targets speak of first, then other single texts.
SHAPES = ((1, 128), (32, 128), (1, 16), (1, 32), (1, 64), (1, 256))
DTYPE = "float16"
COMPILE_S = 60
# Two timings of one kernel or chain differ by about this much; what gains less stays as it is.
LEAST_GAIN = 1.02

Products = dict[tuple[str, int, int, int, int], GemmTile]


@dataclasses.dataclass(frozen=True)
class Tables:
    """The kernels' frozen tables as a run would change them.

    Attributes:
        products: In place of ``gpu_linear.MEASURED``.
        overlapped: In place of ``overlap.OVERLAPPED_TOKENS``.
    """

    products: Products
    overlapped: Mapping[int, int] = dataclasses.field(default_factory=dict)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """What is launched meanwhile, or captured, goes by these."""
        before = gpu_linear.MEASURED, overlap.OVERLAPPED_TOKENS
        gpu_linear.MEASURED, overlap.OVERLAPPED_TOKENS = self.products, self.overlapped
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


def shape_of(texts: int, tokens: int) -> str:
    """For a table."""
    return f"{texts} x {tokens}"


class Chains:
    """Whole models under the tables that a run has found so far.

    Args:
        device: Where they run.
        architecture: Its compute capability.
        found: Products as the tables would be.
        ours: The quickest tile of our own for each shape, whatever cuBLAS takes.
        add: Called with every row as it comes.
        paste: Called with every line for a person.
    """

    def __init__(
        self,
        device: torch.device,
        architecture: int,
        found: Products,
        ours: Products,
        add: Callable[[Row], None],
        paste: Callable[[str], None],
    ) -> None:
        self._device = device
        self._architecture = architecture
        self._found = found
        self._ours = ours
        self._add = add
        self._paste = paste
        self._rows: list[Row] = []
        self._subjects: dict[str, tuple[Subject, Engine]] = {}

    def measure(self, texts: int, tokens: int) -> None:
        """Every model at this shape: check, time, and say in a line."""
        shape = shape_of(texts, tokens)
        for name in MODELS:
            subject, engine = self._subject(name)
            batch = subject.batch(shape, [tokens] * texts)
            rows = subject.measure(DTYPE, batch, self.engines(engine, texts * tokens), COMPILE_S)
            for row in rows:
                row.part, row.is_ours = PART, True
                self._rows.append(row)
                self._add(row)
            times = ", ".join(
                f"{row.engine} {row.ms:.4f}" if row.ms else f"{row.engine} no time" for row in rows
            )
            self._paste(f"# {name}, {shape}, ms in a row: {times}")

    def engines(self, engine: Engine, tokens: int) -> dict[str, Engine]:
        """Each of ENGINES; ``tokens`` of the whole batch."""
        overlapped = {self._architecture: tokens}
        ours = {**self._found, **self._ours}
        tables = {
            FOUND: Tables(self._found),
            FOUND_OVERLAPPED: Tables(self._found, overlapped),
            OURS: Tables(ours),
            OURS_OVERLAPPED: Tables(ours, overlapped),
        }
        others = {name: captured_with(tables[name], engine) for name in ENGINES[1:]}
        return {AS_NOW: engine, **others}

    def close(self) -> None:
        """Say up to how many tokens to overlap, and remove the models' files."""
        if self._rows:
            most = most_overlapped_tokens(self._rows)
            self._paste(f"OVERLAPPED_TOKENS = {{{self._architecture}: {most}}}")
        for subject, _ in self._subjects.values():
            subject.close()

    def _subject(self, name: str) -> tuple[Subject, Engine]:
        if name not in self._subjects:
            subject = Subject(name, self._device)
            self._subjects[name] = subject, graph_engine(subject.ours(DTYPE))
        return self._subjects[name]


def most_overlapped_tokens(rows: Sequence[Row]) -> int:
    """Up to so many tokens overlapping gains on every model; 0 where it does on none.

    ``rows`` are of several models, each of some of SHAPES; what was not measured is skipped.
    """
    most = 0
    for texts, tokens in sorted(SHAPES, key=math.prod):
        own = [row for row in rows if row.shape == shape_of(texts, tokens)]
        for model in {row.what for row in own}:
            plain, overlapped = (
                min((row.ms for row in own if _is_one(row, model, names)), default=None)
                for names in ((FOUND, OURS), (FOUND_OVERLAPPED, OURS_OVERLAPPED))
            )
            if plain is None or overlapped is None or plain < LEAST_GAIN * overlapped:
                return most
        if own:
            most = texts * tokens
    return most


def _is_one(row: Row, model: str, engines: tuple[str, str]) -> bool:
    return row.what == model and row.engine in engines and row.ms is not None
