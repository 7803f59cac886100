"""One vector for each packed sequence, from the vectors of its tokens."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from bertron_kernels.arguments import KERNEL_DTYPES, check_pool
from bertron_kernels.language import tl, triton
from bertron_kernels.launch import Launch, RowTile, next_power_of_2

TILE = RowTile(16384, num_warps=8)

# What is worth timing on a GPU before TILE is changed.
CANDIDATES = (
    RowTile(4096, 4),
    RowTile(8192, 4),
    RowTile(8192, 8),
    RowTile(16384, 8),
    RowTile(16384, 16),
    RowTile(32768, 16),
)

MIN_NORM = 1e-12  # a shorter vector is divided by this: torch.nn.functional.normalize's own bound


@triton.jit
def _pool_kernel(
    hidden_states_ptr,
    cu_seqlens_ptr,
    out_ptr,
    MODE: tl.constexpr,
    NORMALIZE: tl.constexpr,
    MIN_NORM: tl.constexpr,
    HIDDEN_SIZE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    sequence = tl.program_id(0).to(tl.int64)
    start = tl.load(cu_seqlens_ptr + sequence)
    length = tl.load(cu_seqlens_ptr + sequence + 1) - start
    columns = tl.arange(0, BLOCK_E)
    is_column = columns < HIDDEN_SIZE
    sequence_ptr = hidden_states_ptr + start.to(tl.int64) * HIDDEN_SIZE

    first = tl.zeros([BLOCK_E], tl.float32)  # the only vector, or the first of mean-max
    second = tl.zeros([BLOCK_E], tl.float32)
    if MODE == "cls" or MODE == "last":
        token = 0 if MODE == "cls" else tl.maximum(length - 1, 0)
        at = (start + token).to(tl.int64) * HIDDEN_SIZE + columns
        first += tl.load(hidden_states_ptr + at, mask=is_column & (length > 0), other=0.0)
    else:
        # Each of BLOCK_T rows for itself, so that no token waits for the sum of those before it.
        totals = tl.zeros([BLOCK_T, BLOCK_E], tl.float32)
        maxima = tl.full([BLOCK_T, BLOCK_E], float("-inf"), tl.float32)
        for first_token in range(0, length, BLOCK_T):
            tokens = first_token + tl.arange(0, BLOCK_T)
            is_token = tokens[:, None] < length
            at = tokens[:, None].to(tl.int64) * HIDDEN_SIZE + columns[None, :]
            hidden = tl.load(sequence_ptr + at, mask=is_token & is_column[None, :], other=0.0)
            hidden = hidden.to(tl.float32)  # [BLOCK_T, BLOCK_E]
            if MODE != "max":
                totals += hidden
            if MODE != "mean":
                maxima = tl.maximum(maxima, tl.where(is_token, hidden, float("-inf")))
        mean = tl.sum(totals, 0) / tl.maximum(length, 1)
        largest = tl.where(is_column & (length > 0), tl.max(maxima, 0), 0.0)
        first = largest if MODE == "max" else mean
        second = largest

    if NORMALIZE:
        square = tl.sum(first * first, 0)
        if MODE == "mean-max":
            square += tl.sum(second * second, 0)
        norm = tl.maximum(tl.sqrt(square), MIN_NORM)
        first = first / norm
        second = second / norm
    if MODE == "mean-max":
        out_ptr += sequence * 2 * HIDDEN_SIZE
        tl.store(out_ptr + HIDDEN_SIZE + columns, second, mask=is_column)
    else:
        out_ptr += sequence * HIDDEN_SIZE
    tl.store(out_ptr + columns, first, mask=is_column)


def plan_pool(
    hidden_states: Tensor,
    cu_seqlens: Tensor,
    mode: str,
    normalize: bool,
    out: Tensor,
    tile: RowTile = TILE,
) -> Launch:
    """The launch that writes the pooled vectors to ``out``; arguments are not checked."""
    hidden_size = hidden_states.shape[1]
    block_e = next_power_of_2(hidden_size)
    return Launch(
        kernel=_pool_kernel,
        grid=(len(cu_seqlens) - 1,),
        arguments={
            "hidden_states_ptr": hidden_states,
            "cu_seqlens_ptr": cu_seqlens,
            "out_ptr": out,
        },
        constants={
            "MODE": mode,
            "NORMALIZE": normalize,
            "MIN_NORM": MIN_NORM,
            "HIDDEN_SIZE": hidden_size,
            "BLOCK_T": max(1, tile.elements // block_e),
            "BLOCK_E": block_e,
        },
        num_warps=tile.num_warps,
    )


def pool(
    hidden_states: Tensor,
    cu_seqlens: Tensor,
    mode: str,
    normalize: bool,
    tile: RowTile = TILE,
) -> Tensor:
    """Reduce the tokens of each sequence to one vector, in fp32.

    Args:
        hidden_states: [T, E] fp16, bf16 or fp32, contiguous, on CUDA; E at most 8192.
        cu_seqlens: [B + 1] int32 on the same device: the row at which each sequence starts, then T.
        mode: ``mean``, ``max``, ``cls`` (first token), ``last`` (last token) or ``mean-max``
            (the mean, then the maximum).
        normalize: Divide each row of the result by its Euclidean length, or by 1e-12 where that is
            larger, so that a zero vector stays zero.
        tile: The tokens that one program reads at a time; any is right, one is quickest.

    Returns:
        fp32 [B, E], or [B, 2E] for ``mean-max``. A sequence of no tokens gives zeros.

    Raises:
        ValueError: Shape, dtype, layout, device or mode do not fit, or E is above 8192.

    Source: Reimers and Gurevych 2019, section 3, arXiv:1908.10084.
    """
    check_pool(hidden_states, cu_seqlens, mode, KERNEL_DTYPES)
    out = torch.empty(
        pooled_shape(hidden_states, cu_seqlens, mode),
        dtype=torch.float32,
        device=hidden_states.device,
    )
    plan_pool(hidden_states, cu_seqlens, mode, normalize, out, tile).run()
    return out


def pooled_shape(hidden_states: Tensor, cu_seqlens: Tensor, mode: str) -> tuple[int, int]:
    """[B, E], or [B, 2E] for ``mean-max``."""
    hidden_size = hidden_states.shape[1]
    return cu_seqlens.shape[0] - 1, hidden_size * 2 if mode == "mean-max" else hidden_size


def pool_reference(hidden_states: Tensor, cu_seqlens: Tensor, mode: str, normalize: bool) -> Tensor:
    """What ``pool`` must give, one sequence after the other; float64 when given float64."""
    exact = hidden_states if hidden_states.dtype == torch.float64 else hidden_states.float()
    bounds = cu_seqlens.tolist()
    out = exact.new_zeros(pooled_shape(exact, cu_seqlens, mode))
    for row, (start, end) in zip(out, pairwise(bounds), strict=True):
        tokens = exact[start:end]
        if start == end:
            continue
        if mode == "mean":
            row.copy_(tokens.mean(0))
        elif mode == "max":
            row.copy_(tokens.amax(0))
        elif mode == "mean-max":
            row.copy_(torch.cat([tokens.mean(0), tokens.amax(0)]))
        else:
            row.copy_(tokens[0 if mode == "cls" else -1])
    if normalize:
        out /= out.norm(dim=1, keepdim=True).clamp_min(MIN_NORM)
    return out
