"""Bias and GELU in one pass over memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bertron_kernels.arguments import KERNEL_DTYPES, check_bias_gelu
from bertron_kernels.language import tl, triton
from bertron_kernels.launch import Launch, ceil_div, next_power_of_2

# Elements of one program, 8 a thread at 4 warps: 16 bytes in fp16, the widest load there is.
ELEMENTS_PER_PROGRAM = 1024


@triton.jit
def gelu_fp32(x):
    """GELU of fp32 values inside any kernel, with the exact error function."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))  # 1 / sqrt(2)


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
    tl.store(out_ptr + at, gelu_fp32(x).to(out_ptr.dtype.element_ty), mask=mask)


def plan_bias_gelu(x: Tensor, bias: Tensor | None, out: Tensor) -> Launch:
    """The launch that writes the activations to ``out``; arguments are not checked."""
    num_tokens, intermediate_size = x.shape
    block_i = min(next_power_of_2(intermediate_size), ELEMENTS_PER_PROGRAM)
    block_t = ELEMENTS_PER_PROGRAM // block_i
    return Launch(
        kernel=_bias_gelu_kernel,
        grid=(ceil_div(num_tokens, block_t), ceil_div(intermediate_size, block_i)),
        arguments={"x_ptr": x, "bias_ptr": bias, "out_ptr": out, "num_tokens": num_tokens},
        constants={"INTERMEDIATE_SIZE": intermediate_size, "BLOCK_T": block_t, "BLOCK_I": block_i},
        num_warps=4,
    )


def bias_gelu(x: Tensor, bias: Tensor | None) -> Tensor:
    """``GELU(x + bias)`` with the exact error function, not its tanh approximation.

    Args:
        x: [T, I] fp16, bf16 or fp32, contiguous, on CUDA.
        bias: [I] as ``x``, or None.

    Returns:
        [T, I] in the dtype of ``x``; computed in fp32.

    Raises:
        ValueError: Shape, dtype, layout or device do not fit.

    Source: Hendrycks and Gimpel 2016, section 2, arXiv:1606.08415.
    """
    check_bias_gelu(x, bias, KERNEL_DTYPES)
    out = torch.empty_like(x)
    plan_bias_gelu(x, bias, out).run()
    return out


def bias_gelu_reference(x: Tensor, bias: Tensor | None) -> Tensor:
    """What ``bias_gelu`` must give.

    Computes in float64 when given float64, otherwise in fp32, and rounds once at the end.
    """
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32
    total = x.to(exact) if bias is None else x.to(exact) + bias.to(exact)
    return (0.5 * total * (1.0 + torch.erf(total / math.sqrt(2.0)))).to(x.dtype)
