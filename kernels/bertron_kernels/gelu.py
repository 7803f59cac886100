"""Bias and GELU in one pass over memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bertron_kernels.arguments import KERNEL_DTYPES, check_bias_gelu
from bertron_kernels.language import tl, triton
from bertron_kernels.launch import Launch, RowTile, ceil_div, next_power_of_2

# 8 elements a thread: 16 bytes in fp16, the widest load there is.
TILE = RowTile(1024, num_warps=4)

# What is worth timing on a GPU before TILE is changed.
CANDIDATES = (
    RowTile(512, 2),
    RowTile(1024, 2),
    RowTile(1024, 4),
    RowTile(2048, 4),
    RowTile(4096, 4),
    RowTile(4096, 8),
)


@triton.jit
def gelu_fp32(x):
    """GELU of fp32 values inside any kernel, with the exact error function."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))  # 1 / sqrt(2)


@triton.jit
def gelu_16_bits(x):
    """GELU of fp32 values that are stored in 16 bits: within 2e-6 of the exact one up to |x| = 9.

    Multiplications and additions alone, of which a chip does eight for one exponential, and few
    enough registers for a product's epilogue. erf(x / sqrt(2)) / 2 is x q(x^2) up to |x| = 5, and
    hardly changes from there on, so that beyond 9 the error is 3e-7 |x|; q is fitted so that x^2 q
    errs by at most 3.4e-7.

    Source: the coefficients are our own; Lawson 1961 (iteratively reweighted least squares).
    """
    inner = tl.minimum(tl.maximum(x, -5.0), 5.0)
    u = inner * inner * 0.08 - 1.0  # -1 to 1, where the powers do not cancel each other
    q = 0.00049297023 * u - 0.00151415463
    q = q * u + 0.00200185856
    q = q * u - 0.00291567113
    q = q * u + 0.00616543195
    q = q * u - 0.0109732334
    q = q * u + 0.0164976558
    q = q * u - 0.0233367303
    q = q * u + 0.0314262296
    q = q * u - 0.0404329496
    q = q * u + 0.0515214209
    q = q * u - 0.0702966524
    q = q * u + 0.14136378
    return x * (inner * q) + 0.5 * x


@triton.jit
def gelu_for(x, DTYPE: tl.constexpr):
    """GELU of fp32 values that are stored as ``DTYPE``."""
    if DTYPE.primitive_bitwidth == 16:
        return gelu_16_bits(x)
    else:  # noqa: RET505  what follows a return is compiled all the same
        return gelu_fp32(x)


@triton.jit(do_not_specialize=["num_tokens"])
def _bias_gelu_kernel(
    x_ptr,
    bias_ptr,
    out_ptr,
    num_tokens,
    INTERMEDIATE_SIZE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    is_column = columns < INTERMEDIATE_SIZE
    mask = (rows[:, None] < num_tokens) & is_column[None, :]
    at = rows[:, None] * INTERMEDIATE_SIZE + columns[None, :]

    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)  # [BLOCK_T, BLOCK_I]
    if bias_ptr is not None:
        x += tl.load(bias_ptr + columns, mask=is_column, other=0.0).to(tl.float32)[None, :]
    out = gelu_for(x, out_ptr.dtype.element_ty)
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=mask)


def plan_bias_gelu(x: Tensor, bias: Tensor | None, out: Tensor, tile: RowTile = TILE) -> Launch:
    """The launch that writes the activations to ``out``; arguments are not checked."""
    num_tokens, intermediate_size = x.shape
    block_i = min(next_power_of_2(intermediate_size), tile.elements)
    block_t = tile.elements // block_i
    return Launch(
        kernel=_bias_gelu_kernel,
        grid=(ceil_div(num_tokens, block_t), ceil_div(intermediate_size, block_i)),
        arguments={"x_ptr": x, "bias_ptr": bias, "out_ptr": out, "num_tokens": num_tokens},
        constants={"INTERMEDIATE_SIZE": intermediate_size, "BLOCK_T": block_t, "BLOCK_I": block_i},
        num_warps=tile.num_warps,
    )


def bias_gelu(x: Tensor, bias: Tensor | None, tile: RowTile = TILE) -> Tensor:
    """``GELU(x + bias)`` with the exact error function, not its tanh approximation.

    Args:
        x: [T, I] fp16, bf16 or fp32, contiguous, on CUDA.
        bias: [I] as ``x``, or None.
        tile: What one program computes; any is right, one is quickest.

    Returns:
        [T, I] in the dtype of ``x``; computed in fp32.

    Raises:
        ValueError: Shape, dtype, layout or device do not fit.

    Source: Hendrycks and Gimpel 2016, section 2, arXiv:1606.08415.
    """
    check_bias_gelu(x, bias, KERNEL_DTYPES)
    out = torch.empty_like(x)
    plan_bias_gelu(x, bias, out, tile).run()
    return out


def bias_gelu_reference(x: Tensor, bias: Tensor | None) -> Tensor:
    """What ``bias_gelu`` must give.

    Computes in float64 when given float64, otherwise in fp32, and rounds once at the end.
    """
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32
    total = x.to(exact) if bias is None else x.to(exact) + bias.to(exact)
    return (0.5 * total * (1.0 + torch.erf(total / math.sqrt(2.0)))).to(x.dtype)
