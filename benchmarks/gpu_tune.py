"""Every tile worth trying, on this GPU: the best as lines for the kernels' frozen tables.

A tile whose result is wrong is no choice; one that is not clearly quicker than what is chosen now
changes nothing.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import gpu_kernels
import torch
from bertron_kernels import gelu, layer_norm, pooling
from bertron_kernels.attention import CANDIDATES as ATTENTION_TILES
from bertron_kernels.attention import varlen_attention
from bertron_kernels.gemm_gelu import CANDIDATES as GEMM_TILES
from bertron_kernels.gemm_gelu import gemm_bias_gelu
from bertron_kernels.launch import capability
from gpu_kernels import OURS, Case, Peer, Run
from gpu_report import Row
from gpu_timing import Budget

PART = "tune"
DTYPE = torch.float16  # bf16 moves as many bytes through the same units, and shares the tables
ATTENTION_TOKENS = 4096
# A measurement serves batches down to half of it only, so each power of two has its own; what most
# batches have comes first, should the time not suffice.
GEMM_TOKENS = (4096, 512, 16384, 128, 16, 2048, 1024, 8192, 256, 64, 32)
PRODUCT = "product + bias_gelu"
# Two timings of one kernel differ by about this much; what gains less stays as it is.
LEAST_GAIN = 1.02


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


def gemm_trials(tokens: int, device: torch.device) -> Iterator[Trial]:
    """The first product of each model's feed-forward."""
    architecture = capability(torch.cuda.current_device())
    for hidden, intermediate in gpu_kernels.SIZES:
        case = gpu_kernels.linear_gelu(tokens, hidden, intermediate, DTYPE, device)
        timed = _with_tiles(case, GEMM_TILES, gemm_bias_gelu)
        product = Peer(gpu_kernels.product_then_gelu, is_ours=True)
        timed = dataclasses.replace(timed, peers={PRODUCT: product, **timed.peers})
        key = (architecture, intermediate, hidden, tokens)  # MEASURED
        yield Trial(timed, lambda name, key=key: f"{key}: {name},")


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
    product_ms, best_ms = times.get(PRODUCT), times[choice.name]
    if product_ms and best_ms:
        gains += f", {product_ms / best_ms:.2f} x {PRODUCT}"
    if choice.name == PRODUCT:
        return f"# {where}: no entry, {PRODUCT} is {gains}"
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


def trials(device: torch.device) -> Iterator[Trial]:
    """All, what matters most first."""
    first, *others = (
        functools.partial(attention_trials, head_dim, device) for head_dim in gpu_kernels.HEADS
    )
    products = [functools.partial(gemm_trials, tokens, device) for tokens in GEMM_TOKENS]
    rows = functools.partial(row_trials, device)
    for group in (first, products[0], *others, *products[1:], rows):
        yield from group()


def measure_all(
    budget: Budget, l2_bytes: int, add: Callable[[Row], None], paste: Callable[[str], None]
) -> None:
    """Every trial that the time suffices for.

    Raises:
        OutOfTimeError: It did not suffice.
    """
    with budget.enforced():
        for trial in trials(torch.device("cuda")):
            rows = measure(trial, l2_bytes)
            for row in rows:
                add(row)
            paste(summary(trial, rows))
            torch.cuda.empty_cache()
