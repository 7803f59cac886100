"""Every tile worth trying, on this GPU: the best as lines for the kernels' frozen tables.

A tile whose result is wrong is no choice; one that is not clearly quicker than what is chosen now
changes nothing. Whole models then say what the products found bring (``gpu_chains``).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gpu_kernels
import torch
from bertron_kernels import gelu, gpu_linear, layer_norm, pooling
from bertron_kernels.attention import CANDIDATES as ATTENTION_TILES
from bertron_kernels.attention import varlen_attention
from bertron_kernels.gemm import BIAS, GELU, PARTIALS, GemmTile, gemm, gemm_partials
from bertron_kernels.gemm import CANDIDATES as GEMM_TILES
from bertron_kernels.launch import capability
from bertron_kernels.layer_norm import add_partials_layer_norm
from gpu_chains import LEAST_GAIN, PART, Chains, Products
from gpu_chains import SHAPES as CHAINS
from gpu_kernels import LIBRARY, OURS, Case, Peer, Run
from gpu_report import Row
from gpu_timing import Budget
from torch import Tensor

DTYPE = torch.float16  # bf16 moves as many bytes through the same units, and shares the tables
ATTENTION_TOKENS = 4096
# A measurement serves batches down to half of it only, so each power of two has its own; those that
# whole models are measured with come first.
MANY_TOKENS = (512, 16384, 2048, 1024, 8192)
MOST_SPLIT_TOKENS = 256
# E, I: of the models that are measured whole, then of the others.
CHAIN_SIZES, OTHER_SIZES = gpu_kernels.SIZES[:2], gpu_kernels.SIZES[2:]
EPILOGUES = {"linear": BIAS, "linear_gelu": GELU, "linear_add_layer_norm": PARTIALS}


@dataclasses.dataclass(frozen=True)
class Choice:
    """The outcome for one shape.

    Attributes:
        name: The quickest that is right; the present one where nothing gains LEAST_GAIN on it.
        gain: How many times as fast as the present one.
        changed: Whether it is another.
    """

    name: str
    gain: float
    changed: bool


def choose(rows: Sequence[Row]) -> Choice | None:
    """The best of one shape's rows, of which OURS is the present; None where that has no time."""
    times = {row.engine: row.ms for row in rows if row.ms is not None}
    if OURS not in times:
        return None
    best = min(times, key=lambda name: times[name])
    gain = times[OURS] / times[best]
    if gain < LEAST_GAIN:
        return Choice(OURS, 1.0, changed=False)
    return Choice(best, gain, changed=True)


@dataclasses.dataclass(frozen=True)
class Trial:
    """One shape with all that may be chosen for it.

    Attributes:
        case: Ours is the present choice, the peers are what may be chosen instead.
        entry: What is pasted for a choice, by its name.
    """

    case: Case
    entry: Callable[[str], str]

    def note(self, _rows: Sequence[Row], _found: Products, _ours: Products) -> str:
        """Keep what whole models are to be measured with; one more line to paste, or none."""
        return ""


@dataclasses.dataclass(frozen=True)
class ProductTrial(Trial):
    """One of a matrix product.

    Attributes:
        key: Of ``gpu_linear.MEASURED``.
        tiles: By their names.
    """

    key: tuple[str, int, int, int, int]
    tiles: Mapping[str, GemmTile]

    def note(self, rows: Sequence[Row], found: Products, ours: Products) -> str:
        """Put the outcome into both tables.

        Returns:
            The best tile of ours, in a comment, where PyTorch's product is quicker; else nothing.
        """
        times = {row.engine: row.ms for row in rows if row.ms is not None}
        choice, mine = choose(rows), [name for name in times if name in self.tiles]
        if choice is not None and choice.changed:
            if choice.name in self.tiles:
                found[self.key] = self.tiles[choice.name]
            else:
                found.pop(self.key, None)
        if not mine:
            return ""
        best = min(mine, key=lambda name: times[name])
        ours[self.key] = self.tiles[best]
        if self.key in found or LIBRARY not in times:
            return ""
        ratio = times[LIBRARY] / times[best]
        return f"# for a whole chain: {self.entry(best)}  # {ratio:.2f} x {LIBRARY}"


def _with_tiles(case: Case, tiles: Sequence[object], launcher: Run) -> Case:
    ways = {
        repr(tile): Peer(functools.partial(launcher, tile=tile), is_ours=True) for tile in tiles
    }
    return dataclasses.replace(case, peers=ways)


def attention_trials(head_dim: int, device: torch.device) -> Iterator[Trial]:
    """Each length class, in texts of its longest."""
    for length, tiles in ATTENTION_TILES.items():
        texts = [length] * (ATTENTION_TOKENS // length)
        heads = gpu_kernels.HEADS[head_dim]
        case = gpu_kernels.attention(texts, heads, head_dim, DTYPE, device)
        key = (DTYPE.itemsize, head_dim, length)  # TILES or SM_90_TILES
        timed = _with_tiles(case, tiles, varlen_attention)
        yield Trial(timed, lambda name, key=key: f"{key}: {name},")


def product_trials(
    tokens: int, sizes: Sequence[tuple[int, int]], architecture: int, device: torch.device
) -> Iterator[ProductTrial]:
    """Each product of layers of these sizes (E, I), by tiles of ours and by PyTorch."""
    for hidden, intermediate in sizes:
        for op, inputs, outputs in gpu_kernels.products(hidden, intermediate):
            tiles = tiles_for(op, tokens)
            case = gpu_kernels.product(op, tokens, inputs, outputs, DTYPE, device)
            timed = _with_tiles(case, tiles, functools.partial(_by_tile, op))
            library = {LIBRARY: case.peers[LIBRARY]}
            timed = dataclasses.replace(timed, peers={**library, **timed.peers})
            key = (EPILOGUES[op], architecture, outputs, inputs, tokens)
            yield ProductTrial(
                timed,
                lambda name, key=key: f"{key}: {name},",
                key,
                {repr(tile): tile for tile in tiles},
            )


def tiles_for(op: str, tokens: int) -> list[GemmTile]:
    """What may serve an op; many tokens have programs enough, and parts would only be bytes."""
    return [
        tile
        for tile in GEMM_TILES
        if EPILOGUES[op] in tile.epilogues() and (tile.splits == 1 or tokens <= MOST_SPLIT_TOKENS)
    ]


def _by_tile(
    op: str, x: Tensor, weight: Tensor, bias: Tensor, *rest: Any, tile: GemmTile
) -> Tensor:
    """The op by our own product, as ``gpu_linear`` serves it."""
    if EPILOGUES[op] != PARTIALS:
        return gemm(x, weight, bias, EPILOGUES[op], tile)
    residual, *norm = rest
    return add_partials_layer_norm(gemm_partials(x, weight, tile), residual, bias, *norm)


def measure(trial: Trial, l2_bytes: int) -> list[Row]:
    """Check every choice on one draw, then time those that are right."""
    rows = gpu_kernels.measure(trial.case, l2_bytes)
    for row in rows:
        row.part = PART
        if row.error is None and row.engine != OURS:
            row.is_ours = False  # it needs more than this GPU has: no choice, and no failure
    return rows


def summary(trial: Trial, rows: Sequence[Row]) -> str:
    """One line: what to paste, or that nothing is to be changed."""
    where = f"{trial.case.op}, {trial.case.shape}"
    choice = choose(rows)
    if choice is None:
        return f"# {where}: the present choice has no time"
    if not choice.changed:
        return f"# {where}: stays as it is"
    gains = f"{choice.gain:.2f} x the present choice"
    times = {row.engine: row.ms for row in rows}
    library_ms, best_ms = times.get(LIBRARY), times[choice.name]
    if library_ms and best_ms:
        gains += f", {library_ms / best_ms:.2f} x {LIBRARY}"
    if choice.name == LIBRARY:
        return f"# {where}: no entry, {LIBRARY} is {gains}"
    return f"{trial.entry(choice.name)}  # {where}: {gains}"


ROWS = (16384, 4096, 128)  # of what goes row by row: beyond the cache, in it, one text


def row_trials(device: torch.device) -> Iterator[Trial]:
    """What goes row by row, and pooling; ``TILE`` of each module is one for all, chosen by eye."""
    for tokens in ROWS:
        for hidden, intermediate in gpu_kernels.SIZES:
            norm = gpu_kernels.add_layer_norm(tokens, hidden, DTYPE, device)
            yield _tile_trial(norm, layer_norm.CANDIDATES, layer_norm.add_layer_norm)
            gelu_case = gpu_kernels.bias_gelu(tokens, intermediate, DTYPE, device)
            yield _tile_trial(gelu_case, gelu.CANDIDATES, gelu.bias_gelu)
            texts = gpu_kernels.pool(
                [min(tokens, 128)] * max(1, tokens // 128), hidden, DTYPE, device
            )
            yield _tile_trial(texts, pooling.CANDIDATES, pooling.pool)


def _tile_trial(case: Case, tiles: Sequence[object], launcher: Run) -> Trial:
    return Trial(_with_tiles(case, tiles, launcher), lambda name: f"TILE = {name}")


def measure_all(
    budget: Budget, l2_bytes: int, add: Callable[[Row], None], paste: Callable[[str], None]
) -> None:
    """Every trial that the time suffices for, what matters most first.

    Raises:
        OutOfTimeError: It did not suffice.
    """
    device, architecture = torch.device("cuda:0"), capability(torch.cuda.current_device())
    found, ours = dict(gpu_linear.MEASURED), Products()

    def measure_each(trials: Iterator[Trial]) -> None:
        for trial in trials:
            rows = measure(trial, l2_bytes)
            for row in rows:
                add(row)
            for line in (summary(trial, rows), trial.note(rows, found, ours)):
                if line:
                    paste(line)
            torch.cuda.empty_cache()

    chains = Chains(device, architecture, found, ours, add, paste)
    try:
        with budget.enforced():
            for texts, tokens in CHAINS:
                measure_each(product_trials(texts * tokens, CHAIN_SIZES, architecture, device))
                chains.measure(texts, tokens)
            measure_each(other_trials(architecture, device))
    finally:
        chains.close()


def other_trials(architecture: int, device: torch.device) -> Iterator[Trial]:
    """All but what whole models are measured with."""
    for head_dim in gpu_kernels.HEADS:
        yield from attention_trials(head_dim, device)
    for tokens in MANY_TOKENS:
        yield from product_trials(tokens, CHAIN_SIZES, architecture, device)
    for tokens in (*(math.prod(shape) for shape in CHAINS), *MANY_TOKENS):
        yield from product_trials(tokens, OTHER_SIZES, architecture, device)
    yield from row_trials(device)
