"""Attention over packed sequences of any lengths: every token looks at its own sequence alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from bertron_kernels.arguments import KERNEL_DTYPES, MAX_HEAD_DIM, check_varlen_attention
from bertron_kernels.language import TensorDescriptor, tl, triton
from bertron_kernels.launch import (
    BULK_ALIGNMENT,
    FIRST_WITH_BULK,
    Launch,
    capability,
    ceil_div,
)
from bertron_kernels.overlap import let_next_start, overlaps, wait_for_previous

LOG2_E = math.log2(math.e)
MIN_HEAD_DIM = 16  # the smallest side of a tile that the matrix instructions take


@dataclass(frozen=True)
class Tile:
    """What one program computes: ``block_m`` queries against ``block_n`` keys at a time.

    Attributes:
        bulk: Keys and values are copied by the chip's own copy unit (TMA), which sm_90 has first.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    bulk: bool = False


# A batch's longest sequence decides its class; what is compiled and captured depends on the class
# alone. Where a class's tile has a block of keys of its length, softmax takes one pass.
LENGTH_CLASSES = (32, 64, 128, 512)
HEAD_DIM_CLASSES = (32, 64, 128, 256)

# By (bytes an element, head_dim class, length class): those of head_dim 32 and 64 were quickest on
# one H200 in float16 (benchmarks/results/gpu_tiles.md), the others are guesses. Up to head_dim 128
# none spills on sm_80, sm_90 or sm_100 (the compile gate).
TILES = {
    (2, 32, 32): Tile(32, 32, num_warps=2, num_stages=1),
    (2, 32, 64): Tile(64, 64, num_warps=4, num_stages=1),
    (2, 32, 128): Tile(64, 32, num_warps=4, num_stages=3),
    (2, 32, 512): Tile(64, 64, num_warps=4, num_stages=3),
    (2, 64, 32): Tile(32, 32, num_warps=2, num_stages=1),
    (2, 64, 64): Tile(64, 64, num_warps=4, num_stages=1),
    (2, 64, 128): Tile(64, 32, num_warps=4, num_stages=3),
    (2, 64, 512): Tile(64, 64, num_warps=4, num_stages=3),
    **{(2, 128, bound): Tile(64, 32, 8, 1) for bound in LENGTH_CLASSES},
    **{(2, 256, bound): Tile(32, 32, 8, 1) for bound in LENGTH_CLASSES},
    # fp32 runs on the plain multiply-add units, whose operands live in registers
    **{(4, wide, bound): Tile(32, 16, 4, 1) for wide in (32, 64) for bound in LENGTH_CLASSES},
    **{(4, wide, bound): Tile(16, 16, 8, 1) for wide in (128, 256) for bound in LENGTH_CLASSES},
}
# Instead of those from sm_90 on, from the same timings: some by the copy unit, which that has
# first, some too large for the registers that sm_80's matrix instructions leave; those of head_dim
# 256 are guesses.
SM_90_TILES = {
    (2, 32, 512): Tile(64, 64, num_warps=4, num_stages=3, bulk=True),
    (2, 64, 512): Tile(128, 64, num_warps=8, num_stages=3, bulk=True),
    (2, 128, 32): Tile(32, 32, num_warps=2, num_stages=1),
    (2, 128, 64): Tile(64, 64, num_warps=4, num_stages=1),
    (2, 128, 128): Tile(64, 32, num_warps=4, num_stages=3),
    (2, 128, 512): Tile(64, 64, num_warps=4, num_stages=3, bulk=True),
    **{(2, 256, bound): Tile(64, 32, 8, 1) for bound in LENGTH_CLASSES},
}

# What is worth timing on a GPU before TILES is changed, by length class, for fp16 and bf16.
CANDIDATES = {
    32: (Tile(16, 32, 1, 1), Tile(32, 32, 2, 1), Tile(32, 32, 4, 1)),
    64: (
        Tile(32, 64, 2, 1),
        Tile(64, 64, 4, 1),
        Tile(64, 64, 4, 1, bulk=True),
    ),
    128: (
        Tile(64, 128, 4, 1),
        Tile(128, 128, 8, 1),
        Tile(64, 64, 4, 2),
        Tile(64, 32, 4, 3),
        Tile(32, 32, 2, 3),
        Tile(32, 32, 4, 3),
        Tile(64, 64, 4, 2, bulk=True),
        Tile(128, 128, 8, 1, bulk=True),
    ),
    512: (
        Tile(64, 64, 4, 2),
        Tile(64, 64, 4, 3),
        Tile(128, 64, 8, 3),
        Tile(64, 64, 4, 2, bulk=True),
        Tile(64, 64, 4, 3, bulk=True),
        Tile(64, 128, 4, 2, bulk=True),
        Tile(128, 64, 8, 3, bulk=True),
    ),
}

# A program that finds nothing to do ends at once; one that searches waits for a few reads first.
# So many times the searching programs are accepted rather than searching. Not yet timed.
DIRECT_GRID_FACTOR = 2


@triton.jit
def _dot(a, b):
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _load_block(
    rows_ptr,
    blocks,
    row,
    column,
    first_key,
    length,
    row_width,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    IS_WHOLE: tl.constexpr,
):
    """[BLOCK_N, HEAD_DIM] of keys or values; zeros beyond the sequence.

    Either from ``rows_ptr``, at the sequence's first one, or by ``blocks``, of which they are rows
    from ``row`` and columns from ``column`` on.
    """
    keys = first_key + tl.arange(0, BLOCK_N)
    is_key = keys[:, None] < length
    if blocks is None:
        at = rows_ptr + keys[:, None] * row_width + tl.arange(0, HEAD_DIM)[None, :]
        if IS_WHOLE:
            return tl.load(at)
        else:  # noqa: RET505  what follows a return is compiled all the same
            return tl.load(at, mask=is_key, other=0.0)
    else:
        block = blocks.load([row + first_key, column])
        if IS_WHOLE:
            return block
        else:  # noqa: RET505  the next sequence's rows: 0 times its infinity would be NaN
            return tl.where(is_key, block, 0.0)


@triton.jit
def _attend(
    query,
    query_ptr,
    blocks,
    row,
    column,
    first_key,
    length,
    width,
    scale_log2,
    row_max,
    row_sum,
    context,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    IS_WHOLE: tl.constexpr,
    IS_FIRST: tl.constexpr,
):
    """One block of keys into the running maximum, sum and context; the last may not be whole."""
    # fmt: off
    if IS_FIRST or IS_WHOLE:  # else later, since the mask takes registers
        value = _load_block(
            query_ptr + 2 * width, blocks, row, column + 2 * width,
            first_key, length, 3 * width, HEAD_DIM, BLOCK_N, IS_WHOLE,
        )
    key = _load_block(
        query_ptr + width, blocks, row, column + width,
        first_key, length, 3 * width, HEAD_DIM, BLOCK_N, IS_WHOLE,
    )
    # fmt: on
    scores = _dot(query, tl.trans(key))  # [BLOCK_M, BLOCK_N]
    if not IS_WHOLE:
        keys = first_key + tl.arange(0, BLOCK_N)
        scores = tl.where(keys[None, :] < length, scores, float("-inf"))
    # The scale goes in here, in fp32 and in the same instruction as the difference: scaling the
    # query would round it to its own dtype. The maximum is that of the scaled scores.
    if IS_FIRST:
        row_max = tl.max(scores, 1) * scale_log2
        weights = tl.exp2(scores * scale_log2 - row_max[:, None])
        row_sum = tl.sum(weights, 1)
        context = _dot(weights.to(value.dtype), value)
    else:
        new_max = tl.maximum(row_max, tl.max(scores, 1) * scale_log2)
        rescale = tl.exp2(row_max - new_max)
        row_max = new_max
        weights = tl.exp2(scores * scale_log2 - row_max[:, None])
        row_sum = row_sum * rescale + tl.sum(weights, 1)
        context = context * rescale[:, None]
        # fmt: off
        if not IS_WHOLE:
            value = _load_block(
                query_ptr + 2 * width, blocks, row, column + 2 * width,
                first_key, length, 3 * width, HEAD_DIM, BLOCK_N, IS_WHOLE,
            )
        # fmt: on
        context += _dot(weights.to(value.dtype), value)
    return row_max, row_sum, context


@triton.jit
def _locate(tile, cu_seqlens_ptr, num_sequences, tiles_per_sequence, BLOCK_M: tl.constexpr):
    """The sequence that a tile belongs to, and its first query there."""
    if tiles_per_sequence > 0:
        sequence = tile // tiles_per_sequence
        first_tile = sequence * tiles_per_sequence
    else:
        # Sequence b has the tiles from cu_seqlens[b] // BLOCK_M + b on: at least as many as it
        # needs, at most one more, and its place is known without counting the others' tiles.
        sequence = 0
        end = num_sequences
        while end - sequence > 1:
            middle = (sequence + end) // 2
            if tl.load(cu_seqlens_ptr + middle) // BLOCK_M + middle <= tile:
                sequence = middle
            else:
                end = middle
        first_tile = tl.load(cu_seqlens_ptr + sequence) // BLOCK_M + sequence
    return sequence, (tile - first_tile) * BLOCK_M


@triton.jit(do_not_specialize=["num_heads", "num_sequences", "tiles_per_sequence"])
def _varlen_attention_kernel(
    qkv_ptr,
    blocks,
    cu_seqlens_ptr,
    out_ptr,
    scale_log2,
    num_heads,
    num_sequences,
    tiles_per_sequence,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    PEELS: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    if OVERLAPS:
        let_next_start()
        wait_for_previous()
    # The heads of the same rows run side by side: what lies together is read together.
    program = tl.program_id(0)
    tile = program // num_heads
    head = program % num_heads
    sequence, first_query = _locate(
        tile, cu_seqlens_ptr, num_sequences, tiles_per_sequence, BLOCK_M
    )
    start = tl.load(cu_seqlens_ptr + sequence)
    length = tl.load(cu_seqlens_ptr + sequence + 1) - start
    if first_query >= length:
        return

    width = num_heads * HEAD_DIM
    start_row = start.to(tl.int64)  # T * 3 * H * D passes 2^31 from about 0.9 M tokens on
    query_ptr = qkv_ptr + start_row * 3 * width + head * HEAD_DIM
    dims = tl.arange(0, HEAD_DIM)
    queries = first_query + tl.arange(0, BLOCK_M)
    is_query = queries[:, None] < length
    query_at = queries[:, None] * 3 * width + dims[None, :]
    query = tl.load(query_ptr + query_at, mask=is_query, other=0.0)  # [BLOCK_M, HEAD_DIM]

    # Key 0 is in every sequence that comes this far: the maximum is finite after one block.
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    context = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)
    # fmt: off
    whole = length // BLOCK_N * BLOCK_N
    if ONE_BLOCK:
        if whole > 0:
            row_max, row_sum, context = _attend(
                query, query_ptr, blocks, start, head * HEAD_DIM, 0, length, width, scale_log2,
                row_max, row_sum, context, HEAD_DIM, BLOCK_N, IS_WHOLE=True, IS_FIRST=True,
            )
        else:
            row_max, row_sum, context = _attend(
                query, query_ptr, blocks, start, head * HEAD_DIM, 0, length, width, scale_log2,
                row_max, row_sum, context, HEAD_DIM, BLOCK_N, IS_WHOLE=False, IS_FIRST=True,
            )
    elif PEELS:  # the blocks that need no mask first
        for first_key in range(0, whole, BLOCK_N):
            row_max, row_sum, context = _attend(
                query, query_ptr, blocks, start, head * HEAD_DIM, first_key, length, width,
                scale_log2, row_max, row_sum, context, HEAD_DIM, BLOCK_N, IS_WHOLE=True,
                IS_FIRST=False,
            )
        if whole < length:
            row_max, row_sum, context = _attend(
                query, query_ptr, blocks, start, head * HEAD_DIM, whole, length, width,
                scale_log2, row_max, row_sum, context, HEAD_DIM, BLOCK_N, IS_WHOLE=False,
                IS_FIRST=False,
            )
    else:
        for first_key in range(0, length, BLOCK_N):
            row_max, row_sum, context = _attend(
                query, query_ptr, blocks, start, head * HEAD_DIM, first_key, length, width,
                scale_log2, row_max, row_sum, context, HEAD_DIM, BLOCK_N, IS_WHOLE=False,
                IS_FIRST=False,
            )
    # fmt: on

    context = context * (1.0 / row_sum)[:, None]  # a division a row, not one an element
    out_at = start_row * width + head * HEAD_DIM + queries[:, None] * width + dims[None, :]
    tl.store(out_ptr + out_at, context.to(out_ptr.dtype.element_ty), mask=is_query)


def plan_varlen_attention(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    softmax_scale: float,
    out: Tensor,
    tile: Tile | None = None,
    overlap: bool | None = None,
) -> Launch:
    """The launch that writes the attention of ``qkv`` to ``out``; arguments are not checked.

    ``tile`` and ``overlap`` are instead of the frozen tables'.
    """
    num_tokens, _, num_heads, head_dim = qkv.shape
    num_sequences = len(cu_seqlens) - 1
    is_aligned = qkv.data_ptr() % BULK_ALIGNMENT == 0  # as all that PyTorch allocates
    architecture = capability(qkv.get_device()) if qkv.is_cuda and is_aligned else 0
    tile = tile or choose_tile(head_dim, qkv.element_size(), max_seqlen, architecture)
    if overlap is None:
        overlap = overlaps(qkv, num_tokens)
    programs, tiles_per_sequence = choose_grid(num_tokens, num_sequences, max_seqlen, tile.block_m)
    return Launch(
        kernel=_varlen_attention_kernel,
        grid=(programs * num_heads,),
        arguments={
            "qkv_ptr": qkv,
            "blocks": _blocks_of(qkv, tile.block_n) if tile.bulk else None,
            "cu_seqlens_ptr": cu_seqlens,
            "out_ptr": out,
            "scale_log2": softmax_scale * LOG2_E,
            "num_heads": num_heads,
            "num_sequences": num_sequences,
            "tiles_per_sequence": tiles_per_sequence,
        },
        constants={
            "HEAD_DIM": head_dim,
            "BLOCK_M": tile.block_m,
            "BLOCK_N": tile.block_n,
            "ONE_BLOCK": max(length_class(max_seqlen), max_seqlen) <= tile.block_n,
            # fp32 has no registers for a second copy of the loop's body
            "PEELS": qkv.element_size() == 2,
            "OVERLAPS": overlap,
        },
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def _blocks_of(qkv: Tensor, rows: int) -> Any:
    """So many rows of one head's keys or values, in [T, 3 * H * D]."""
    return TensorDescriptor.from_tensor(qkv.flatten(1), [rows, qkv.shape[3]])


def length_class(max_seqlen: int) -> int:
    """The smallest of LENGTH_CLASSES that is not below ``max_seqlen``; the last has no end."""
    return next((bound for bound in LENGTH_CLASSES if max_seqlen <= bound), LENGTH_CLASSES[-1])


def choose_tile(head_dim: int, element_size: int, max_seqlen: int, architecture: int) -> Tile:
    """The tile for elements of ``element_size`` bytes and this longest sequence, on sm_NN."""
    width = next(bound for bound in HEAD_DIM_CLASSES if head_dim <= bound)
    key = (element_size, width, length_class(max_seqlen))
    if architecture >= FIRST_WITH_BULK and key in SM_90_TILES:
        return SM_90_TILES[key]
    return TILES[key]


def choose_grid(
    num_tokens: int, num_sequences: int, max_seqlen: int, block_m: int
) -> tuple[int, int]:
    """How programs find their sequence, from what the host knows without reading ``cu_seqlens``.

    Returns:
        (programs a head, tiles a sequence). Where lengths are alike, every sequence gets as many
        programs as the longest needs. Where they are mixed that would be mostly idle ones: tiles
        a sequence is then 0, and programs search.
    """
    tiles_per_sequence = ceil_div(max_seqlen, block_m)
    direct = num_sequences * tiles_per_sequence
    searching = num_tokens // block_m + num_sequences
    if direct <= DIRECT_GRID_FACTOR * searching:
        return direct, tiles_per_sequence
    return searching, 0


def varlen_attention(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    softmax_scale: float,
    tile: Tile | None = None,
) -> Tensor:
    """Softmax attention, each token over the tokens of its own sequence.

    Scores, softmax and sums are fp32 whatever the dtype of ``qkv``. No token of another sequence
    and no padding is ever computed.

    Args:
        qkv: [T, 3, H, D] fp16, bf16 or fp32, contiguous, on CUDA: queries, keys, values of each
            token side by side. D is a power of two from 16 to 256.
        cu_seqlens: [B + 1] int32 on the same device: the row at which each sequence starts, then
            T. Equal neighbours are a sequence of no tokens.
        max_seqlen: Length of the longest sequence. Its true length or more: queries beyond it
            would be left unwritten, and reading ``cu_seqlens`` to check would wait for the GPU.
        softmax_scale: Factor on the scores, above 0, as a rule 1 / sqrt(D).
        tile: Instead of the frozen table's, to be timed; any is right.

    Returns:
        [T, H, D] in the dtype of ``qkv``.

    Raises:
        ValueError: Shape, dtype, layout or device do not fit, or head_dim or scale is not
            supported.

    Source: Milakov and Gimelshein 2018, arXiv:1805.02867 (online softmax); Dao et al. 2022,
        arXiv:2205.14135, algorithm 1.
    """
    check_varlen_attention(qkv, cu_seqlens, max_seqlen, KERNEL_DTYPES)
    num_tokens, _, num_heads, head_dim = qkv.shape
    if not MIN_HEAD_DIM <= head_dim <= MAX_HEAD_DIM or head_dim & (head_dim - 1):
        raise ValueError(
            f"head_dim is {head_dim}, expected a power of two from {MIN_HEAD_DIM} to {MAX_HEAD_DIM}"
        )
    if not softmax_scale > 0:  # the largest scaled score is taken to be the largest score, scaled
        raise ValueError(f"softmax_scale is {softmax_scale}, expected more than 0")
    if max_seqlen * 3 * num_heads * head_dim >= 2**31:
        raise ValueError(
            f"max_seqlen is {max_seqlen}, expected less than {2**31 // (3 * num_heads * head_dim)}"
            f" with {num_heads} heads of {head_dim}: offsets inside a sequence are 32 bits wide"
        )
    out = torch.empty((num_tokens, num_heads, head_dim), dtype=qkv.dtype, device=qkv.device)
    if num_tokens:
        plan_varlen_attention(qkv, cu_seqlens, max_seqlen, softmax_scale, out, tile).run()
    return out


def varlen_attention_reference(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, softmax_scale: float
) -> Tensor:
    """What ``varlen_attention`` must give, one sequence after the other.

    Computes in float64 when given float64, otherwise in fp32, and rounds once at the end.
    ``max_seqlen`` is not needed and not looked at.
    """
    del max_seqlen
    exact = qkv if qkv.dtype == torch.float64 else qkv.float()
    bounds = cu_seqlens.tolist()
    contexts = [exact.new_empty((0, *exact.shape[2:]))]
    for start, end in pairwise(bounds):
        query, key, value = exact[start:end].unbind(1)  # each [s, H, D]
        scores = torch.einsum("qhd,khd->hqk", query, key) * softmax_scale
        contexts.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), value))
    return torch.cat(contexts).to(qkv.dtype)
