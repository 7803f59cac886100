"""Addition and layer normalisation in one pass over memory."""

from __future__ import annotations

import torch
from torch import Tensor

from bertron_kernels.arguments import KERNEL_DTYPES, check_add_layer_norm, check_partials
from bertron_kernels.language import tl, triton
from bertron_kernels.launch import Launch, RowTile, ceil_div, next_power_of_2
from bertron_kernels.overlap import let_next_start, overlaps, wait_for_previous

# 32 fp32 values a thread, so many rows a warp that nothing passes between warps. Long rows are
# quicker four to a program, where there are programs enough for the whole chip.
TILE = RowTile(1024, num_warps=1)
LONG_ROWS_TILE = RowTile(4096, num_warps=4)
LONG_ROW, MANY_TOKENS = 1024, 1024
# Partial sums come from the second cache one after the other unless all are on their way at once,
# for which a thread has registers where it holds few values of each.
PARTIALS_VALUES = 8

# What is worth timing on a GPU before TILE is changed.
CANDIDATES = (
    RowTile(512, 1),
    RowTile(1024, 1),
    RowTile(1024, 2),
    RowTile(1024, 4),
    RowTile(2048, 2),
    RowTile(2048, 4),
    RowTile(4096, 4),
    RowTile(4096, 8),
    RowTile(8192, 8),
)


@triton.jit(do_not_specialize=["num_tokens"])
def _add_layer_norm_kernel(
    x_ptr,
    residual_ptr,
    bias_ptr,
    weight_ptr,
    norm_bias_ptr,
    out_ptr,
    eps,
    num_tokens,
    HIDDEN_SIZE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
    PARTS: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    if OVERLAPS:
        let_next_start()
        wait_for_previous()
    rows = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = tl.arange(0, BLOCK_E)
    is_column = columns < HIDDEN_SIZE
    mask = (rows[:, None] < num_tokens) & is_column[None, :]
    at = rows[:, None] * HIDDEN_SIZE + columns[None, :]

    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)  # [BLOCK_T, BLOCK_E]
    for part in tl.static_range(1, PARTS):
        x += tl.load(
            x_ptr + part * num_tokens.to(tl.int64) * HIDDEN_SIZE + at, mask=mask, other=0.0
        )
    if bias_ptr is not None:
        x += tl.load(bias_ptr + columns, mask=is_column, other=0.0).to(tl.float32)[None, :]
    if residual_ptr is not None:
        x += tl.load(residual_ptr + at, mask=mask, other=0.0).to(tl.float32)

    # Twice over the registers: E[x^2] - E[x]^2 loses all digits where a row's mean is large.
    mean = tl.sum(x, 1) / HIDDEN_SIZE
    centred = tl.where(is_column[None, :], x - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, 1) / HIDDEN_SIZE
    weight = tl.load(weight_ptr + columns, mask=is_column, other=0.0).to(tl.float32)
    norm_bias = tl.load(norm_bias_ptr + columns, mask=is_column, other=0.0).to(tl.float32)
    out = centred * tl.rsqrt(variance + eps)[:, None] * weight[None, :] + norm_bias[None, :]
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=mask)


def plan_add_layer_norm(
    x: Tensor,
    residual: Tensor | None,
    bias: Tensor | None,
    weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    out: Tensor,
    tile: RowTile | None = None,
    overlap: bool | None = None,
) -> Launch:
    """The launch that writes the normalised sum to ``out``; arguments are not checked.

    ``x`` is [T, E], or [P, T, E] to be summed first; ``tile`` and ``overlap`` are instead of the
    tables'.
    """
    num_tokens, hidden_size = x.shape[-2:]
    if overlap is None:
        overlap = overlaps(x, num_tokens)
    block_e = next_power_of_2(hidden_size)
    parts = len(x) if x.dim() == 3 else 1
    tile = tile or choose_tile(num_tokens, block_e, parts)
    block_t = max(1, min(8, tile.elements // block_e))
    return Launch(
        kernel=_add_layer_norm_kernel,
        grid=(ceil_div(num_tokens, block_t),),
        arguments={
            "x_ptr": x,
            "residual_ptr": residual,
            "bias_ptr": bias,
            "weight_ptr": weight,
            "norm_bias_ptr": norm_bias,
            "out_ptr": out,
            "eps": eps,
            "num_tokens": num_tokens,
        },
        constants={
            "HIDDEN_SIZE": hidden_size,
            "BLOCK_T": block_t,
            "BLOCK_E": block_e,
            "PARTS": parts,
            "OVERLAPS": overlap,
        },
        num_warps=tile.num_warps,
    )


def choose_tile(num_tokens: int, block_e: int, parts: int = 1) -> RowTile:
    """The tile for so many rows of ``block_e`` elements, each a sum of so many parts."""
    if parts > 1:
        return RowTile(block_e, min(16, max(1, block_e // (32 * PARTIALS_VALUES))))
    tile = LONG_ROWS_TILE if block_e >= LONG_ROW and num_tokens > MANY_TOKENS else TILE
    if block_e <= tile.elements:
        return tile
    return RowTile(block_e, block_e // TILE.elements)


def add_layer_norm(
    x: Tensor,
    residual: Tensor | None,
    bias: Tensor | None,
    weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    tile: RowTile | None = None,
) -> Tensor:
    """``LN(x + bias + residual) * weight + norm_bias``, row by row.

    The sum and the statistics are fp32 whatever the dtypes; nothing is rounded before the end.

    Args:
        x: [T, E] fp16, bf16 or fp32, contiguous, on CUDA; E at most 8192.
        residual: [T, E] as ``weight``, or None.
        bias: [E] as ``weight``, or None: the bias of the matrix product that made ``x``.
        weight: [E] fp16, bf16 or fp32, also where ``x`` is of another dtype.
        norm_bias: [E] as ``weight``.
        eps: Added to the variance; 1e-12 in BERT.
        tile: 1 to 8 whole rows, instead of the one for this shape; any is right.

    Returns:
        [T, E] in the dtype of ``weight``.

    Raises:
        ValueError: Shape, dtype, layout or device do not fit, or E is above 8192.

    Source: Ba et al. 2016, section 3, arXiv:1607.06450.
    """
    check_add_layer_norm(x, residual, bias, weight, norm_bias, KERNEL_DTYPES)
    out = torch.empty_like(x, dtype=weight.dtype)
    plan_add_layer_norm(x, residual, bias, weight, norm_bias, eps, out, tile).run()
    return out


def add_partials_layer_norm(
    partials: Tensor,
    residual: Tensor | None,
    bias: Tensor | None,
    weight: Tensor,
    norm_bias: Tensor,
    eps: float,
) -> Tensor:
    """:func:`add_layer_norm` of a matrix product's partial sums, which it adds as it reads them.

    Args:
        partials: [P, T, E] fp16, bf16 or fp32, contiguous, on CUDA: what ``gemm_partials`` gives.
        residual: As :func:`add_layer_norm`'s, like all that follows.
        bias: [E] or None.
        weight: [E].
        norm_bias: [E].
        eps: Added to the variance.

    Returns:
        [T, E] in the dtype of ``weight``.

    Raises:
        ValueError: As :func:`add_layer_norm`, or there are no partial sums.
    """
    check_partials(partials, KERNEL_DTYPES)
    check_add_layer_norm(partials[0], residual, bias, weight, norm_bias, KERNEL_DTYPES)
    out = torch.empty_like(partials[0], dtype=weight.dtype)
    plan_add_layer_norm(partials, residual, bias, weight, norm_bias, eps, out).run()
    return out


def add_layer_norm_reference(
    x: Tensor,
    residual: Tensor | None,
    bias: Tensor | None,
    weight: Tensor,
    norm_bias: Tensor,
    eps: float,
) -> Tensor:
    """What ``add_layer_norm`` must give.

    Computes in float64 when given float64, otherwise in fp32, and rounds once at the end.
    """
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32
    total = x.to(exact)
    if bias is not None:
        total = total + bias.to(exact)
    if residual is not None:
        total = total + residual.to(exact)
    centred = total - total.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    out = centred / (variance + eps).sqrt() * weight.to(exact) + norm_bias.to(exact)
    return out.to(weight.dtype)
