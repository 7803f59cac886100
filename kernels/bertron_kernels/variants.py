"""The kernel variants that Bertron serves with, as launches: one frozen table.

The tiles of ``gemm`` are all among them, and so is what overlaps: a measurement can make any of
them serve.

What is compiled depends on dtype, hidden size, head_dim and length class, and on whether a batch
has few tokens or many, never on their number. Whoever compiles ahead (a test without a GPU, a
server before it says ready) takes the variants from here, and the launchers' own plans make them:
the two cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bertron_kernels.arguments import POOLING_MODES
from bertron_kernels.attention import (
    LENGTH_CLASSES,
    choose_tile,
    plan_varlen_attention,
)
from bertron_kernels.embedding import plan_embedding_layer_norm
from bertron_kernels.gelu import plan_bias_gelu
from bertron_kernels.gemm import (
    CANDIDATES,
    GELU,
    PARTIALS,
    GemmTile,
    plan_gemm,
    split_terms,
)
from bertron_kernels.launch import FIRST_WITH_BULK, Launch
from bertron_kernels.layer_norm import plan_add_layer_norm
from bertron_kernels.overlap import FIRST_WITH_OVERLAP
from bertron_kernels.pooling import plan_pool

HIDDEN_SIZES = (384, 768, 1024)  # MiniLM, BERT-base, BERT-large
HEAD_DIMS = (32, 64, 128)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)

NUM_TOKENS = FEW, MANY = 64, 4096  # any numbers on either side of where tiles change


MOST_PARTS = max(tile.splits for tile in CANDIDATES)


def served_variants(architecture: int) -> Iterator[tuple[str, Launch]]:
    """Every variant on sm_NN as (name, launch); the launches hold tensors without memory."""
    can_overlap = architecture >= FIRST_WITH_OVERLAP
    for dtype in DTYPES:
        for overlap in (False, True) if can_overlap else (False,):
            yield from _attention(dtype, architecture, overlap=overlap)
            yield from _products(dtype, architecture, overlap=overlap)
            for hidden_size in HIDDEN_SIZES:
                yield from _add_and_norm(dtype, hidden_size, overlap=overlap)
        for hidden_size in HIDDEN_SIZES:
            yield from _row_by_row(dtype, hidden_size)


def _attention(
    dtype: torch.dtype, architecture: int, *, overlap: bool
) -> Iterator[tuple[str, Launch]]:
    for head_dim in HEAD_DIMS:
        for max_seqlen in LENGTH_CLASSES:
            name = f"varlen_attention-{head_dim}-{max_seqlen}-{dtype}{_mark(overlap)}"
            yield name, _varlen_attention(dtype, head_dim, max_seqlen, architecture, overlap)


def _products(
    dtype: torch.dtype, architecture: int, *, overlap: bool
) -> Iterator[tuple[str, Launch]]:
    """Each tile once, of one width and with its longest epilogue: neither adds registers."""
    if dtype == torch.float32:  # on the plain multiply-add units cuBLAS is out of reach
        return
    for tile in CANDIDATES:
        if not tile.bulk or architecture >= FIRST_WITH_BULK:
            name = f"gemm-{tile}-768-{dtype}{_mark(overlap)}"
            yield name, _gemm(dtype, 768, tile, overlap)


def _add_and_norm(
    dtype: torch.dtype, hidden_size: int, *, overlap: bool
) -> Iterator[tuple[str, Launch]]:
    name = f"{hidden_size}-{dtype}{_mark(overlap)}"
    for tokens in (FEW,) if overlap else NUM_TOKENS:
        norm = f"add_layer_norm-{tokens}-{name}"
        yield norm, _add_layer_norm(dtype, dtype, tokens, hidden_size, overlap)
        if dtype == torch.bfloat16:  # a model's residual stream is float32 then, as its tables
            mixed = _add_layer_norm(dtype, torch.float32, tokens, hidden_size, overlap)
            yield f"{norm}-float32-residual", mixed
    yield f"add_partials_layer_norm-{name}", _add_partials(dtype, hidden_size, overlap)


def _row_by_row(dtype: torch.dtype, hidden_size: int) -> Iterator[tuple[str, Launch]]:
    name = f"{hidden_size}-{dtype}"
    yield f"bias_gelu-{name}", _bias_gelu(dtype, hidden_size)
    yield f"embedding_layer_norm-{name}", _embedding_layer_norm(dtype, hidden_size)
    for mode in POOLING_MODES:
        yield f"pool-{mode}-{name}", _pool(dtype, hidden_size, mode)


def _mark(overlap: bool) -> str:
    return "-overlap" * overlap


def _tensor(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _varlen_attention(
    dtype: torch.dtype, head_dim: int, max_seqlen: int, architecture: int, overlap: bool
) -> Launch:
    qkv = _tensor(MANY, 3, 12, head_dim, dtype=dtype)
    cu_seqlens = _tensor(2, dtype=torch.int32)
    out = _tensor(MANY, 12, head_dim, dtype=dtype)
    tile = choose_tile(head_dim, dtype.itemsize, max_seqlen, architecture)
    scale = head_dim**-0.5
    return plan_varlen_attention(qkv, cu_seqlens, max_seqlen, scale, out, tile, overlap)


def _add_layer_norm(
    dtype: torch.dtype, residual_dtype: torch.dtype, tokens: int, hidden_size: int, overlap: bool
) -> Launch:
    x = _tensor(tokens, hidden_size, dtype=dtype)
    residual = _tensor(tokens, hidden_size, dtype=residual_dtype)
    row = _tensor(hidden_size, dtype=residual_dtype)
    return plan_add_layer_norm(
        x, residual, row, row, row, 1e-12, residual, tile=None, overlap=overlap
    )


def _add_partials(dtype: torch.dtype, hidden_size: int, overlap: bool) -> Launch:
    partials = _tensor(MOST_PARTS, FEW, hidden_size, dtype=torch.float32)
    residual, row = _tensor(FEW, hidden_size, dtype=dtype), _tensor(hidden_size, dtype=dtype)
    return plan_add_layer_norm(
        partials, residual, row, row, row, 1e-12, residual, tile=None, overlap=overlap
    )


def _bias_gelu(dtype: torch.dtype, hidden_size: int) -> Launch:
    x = _tensor(MANY, 4 * hidden_size, dtype=dtype)
    return plan_bias_gelu(x, _tensor(4 * hidden_size, dtype=dtype), x)


def _gemm(dtype: torch.dtype, hidden_size: int, tile: GemmTile, overlap: bool) -> Launch:
    x = _tensor(MANY, hidden_size, dtype=dtype)
    weight = _tensor(4 * hidden_size, hidden_size, dtype=dtype)
    if tile.splits == 1:
        bias, out = (
            _tensor(4 * hidden_size, dtype=dtype),
            _tensor(MANY, 4 * hidden_size, dtype=dtype),
        )
        return plan_gemm(x, weight, bias, out, GELU, tile, overlap)
    _, parts = split_terms(hidden_size, tile)
    partials = _tensor(parts, MANY, 4 * hidden_size, dtype=torch.float32)
    return plan_gemm(x, weight, None, partials, PARTIALS, tile, overlap)


def _embedding_layer_norm(dtype: torch.dtype, hidden_size: int) -> Launch:
    ids = _tensor(MANY, dtype=torch.int64)
    table = _tensor(512, hidden_size, dtype=dtype)
    row = _tensor(hidden_size, dtype=dtype)
    return plan_embedding_layer_norm(ids, ids, ids, table, table, table, row, row, 1e-12, table)


def _pool(dtype: torch.dtype, hidden_size: int, mode: str) -> Launch:
    hidden_states = _tensor(MANY, hidden_size, dtype=dtype)
    out = _tensor(1, 2 * hidden_size, dtype=torch.float32)
    return plan_pool(hidden_states, _tensor(2, dtype=torch.int32), mode, True, out)
