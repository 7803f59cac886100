"""Matrix product whose epilogue adds the bias and applies GELU before anything is stored.

cuBLASLt's own epilogue has the tanh approximation only, so the exact GELU costs another pass over
[T, I] after it. Here it costs none, but the product must hold against cuBLASLt's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bertron_kernels.arguments import KERNEL_DTYPES, check_gemm_bias_gelu
from bertron_kernels.gelu import bias_gelu, bias_gelu_reference, gelu_for
from bertron_kernels.language import TensorDescriptor, tl, triton
from bertron_kernels.launch import (
    BULK_ALIGNMENT,
    Launch,
    capability,
    ceil_div,
    multiprocessors,
    next_power_of_2,
)
from bertron_kernels.linear import linear_gelu_with


@dataclass(frozen=True)
class GemmTile:
    """What one program computes: ``block_m`` x ``block_n`` outputs, ``block_k`` terms at a time.

    Attributes:
        bulk: Blocks are copied by the chip's own copy unit (TMA), which sm_90 has first: no thread
            computes an address. Rows must be multiples of 16 bytes.
        persistent: As many programs as the chip runs at once, each for several tiles in turn.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    bulk: bool = False
    persistent: bool = False

    def __str__(self) -> str:
        """Block sizes, warps, stages and ways: ``64x128x64-w4-s3-bulk``."""
        blocks = f"{self.block_m}x{self.block_n}x{self.block_k}"
        ways = "-bulk" * self.bulk + "-persistent" * self.persistent
        return f"{blocks}-w{self.num_warps}-s{self.num_stages}{ways}"


_M16_N64 = GemmTile(16, 64, 64, num_warps=4, num_stages=4)
_M64_N64 = GemmTile(64, 64, 64, num_warps=4, num_stages=4)
_M64_N64_BULK = GemmTile(64, 64, 64, num_warps=4, num_stages=4, bulk=True)
_M128_N128_BULK = GemmTile(128, 128, 64, num_warps=8, num_stages=3, bulk=True)
_M128_N128_PERSISTENT = GemmTile(
    128, 128, 64, num_warps=8, num_stages=4, bulk=True, persistent=True
)
_M128_N256_PERSISTENT = GemmTile(
    128, 256, 64, num_warps=8, num_stages=3, bulk=True, persistent=True
)
# All that is ever compiled; the compile gate holds each to no spills.
CANDIDATES = (
    _M16_N64,
    GemmTile(32, 64, 64, num_warps=4, num_stages=4),
    _M64_N64,
    _M64_N64_BULK,
    GemmTile(64, 128, 64, num_warps=4, num_stages=4, bulk=True),
    GemmTile(128, 128, 64, num_warps=4, num_stages=3, bulk=True),
    _M128_N128_BULK,
    GemmTile(128, 256, 64, num_warps=8, num_stages=3, bulk=True),
    _M128_N128_PERSISTENT,
    _M128_N256_PERSISTENT,
)

# Where a measurement found a tile quicker than cuBLASLt with ``bias_gelu`` after it, by (compute
# capability, outputs N, inputs K, tokens T up to this power of two), for fp16 and bf16: from an
# H200 (benchmarks/results/gpu_tiles.md). On every other shape cuBLASLt serves.
MEASURED: Mapping[tuple[int, int, int, int], GemmTile] = {
    (90, 3072, 768, 16): _M16_N64,
    (90, 3072, 768, 32): _M16_N64,
    (90, 3072, 768, 64): _M16_N64,
    (90, 3072, 768, 128): _M64_N64,
    (90, 3072, 768, 256): _M64_N64_BULK,
    (90, 3072, 768, 512): _M64_N64_BULK,
    (90, 3072, 768, 2048): _M128_N128_PERSISTENT,
    (90, 3072, 768, 4096): _M128_N128_PERSISTENT,
    (90, 3072, 768, 8192): _M128_N128_PERSISTENT,
    (90, 3072, 768, 16384): _M128_N256_PERSISTENT,
    (90, 1536, 384, 16): _M16_N64,
    (90, 1536, 384, 32): _M16_N64,
    (90, 1536, 384, 64): _M16_N64,
    (90, 1536, 384, 128): _M64_N64,
    (90, 1536, 384, 256): _M64_N64,
    (90, 1536, 384, 512): _M64_N64_BULK,
    (90, 1536, 384, 1024): _M64_N64_BULK,
    (90, 1536, 384, 2048): _M128_N128_BULK,
    (90, 1536, 384, 4096): _M128_N128_BULK,
    (90, 1536, 384, 8192): _M128_N128_BULK,
    (90, 1536, 384, 16384): _M128_N128_BULK,
    (90, 4096, 1024, 16): _M16_N64,
    (90, 4096, 1024, 32): _M16_N64,
    (90, 4096, 1024, 256): _M64_N64_BULK,
    (90, 4096, 1024, 512): _M128_N128_PERSISTENT,
    (90, 4096, 1024, 1024): _M128_N128_BULK,
    (90, 4096, 1024, 2048): _M128_N128_PERSISTENT,
    (90, 4096, 1024, 4096): _M128_N128_PERSISTENT,
    (90, 4096, 1024, 8192): _M128_N256_PERSISTENT,
    (90, 4096, 1024, 16384): _M128_N256_PERSISTENT,
}

# Programs that run at the same time share rows of x and of the weight when they stand in a square.
GROUP_M = 8


@triton.jit
def _place(
    tile,
    num_tokens,
    NUM_OUTPUTS: tl.constexpr,
    GROUP_M: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """First row and first column of a tile."""
    rows_of_tiles = tl.cdiv(num_tokens, BLOCK_M)
    columns_of_tiles: tl.constexpr = (NUM_OUTPUTS + BLOCK_N - 1) // BLOCK_N
    group = tile // (GROUP_M * columns_of_tiles)
    first_row = group * GROUP_M
    group_rows = tl.minimum(rows_of_tiles - first_row, GROUP_M)
    within = tile % (GROUP_M * columns_of_tiles)
    return (first_row + within % group_rows) * BLOCK_M, (within // group_rows) * BLOCK_N


@triton.jit(do_not_specialize=["num_tokens"])
def _gemm_bias_gelu_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    num_tokens,
    NUM_OUTPUTS: tl.constexpr,
    NUM_INPUTS: tl.constexpr,
    GROUP_M: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row, column = _place(tl.program_id(0), num_tokens, NUM_OUTPUTS, GROUP_M, BLOCK_M, BLOCK_N)
    rows = row + tl.arange(0, BLOCK_M)
    columns = column + tl.arange(0, BLOCK_N)
    terms = tl.arange(0, BLOCK_K)
    is_row = rows[:, None] < num_tokens
    is_column = columns < NUM_OUTPUTS

    x_at = x_ptr + rows[:, None].to(tl.int64) * NUM_INPUTS + terms[None, :]
    weight_at = weight_ptr + columns[:, None] * NUM_INPUTS + terms[None, :]
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first_term in range(0, NUM_INPUTS, BLOCK_K):
        if NUM_INPUTS % BLOCK_K == 0:
            x = tl.load(x_at, mask=is_row, other=0.0)  # [BLOCK_M, BLOCK_K]
            weight = tl.load(weight_at, mask=is_column[:, None], other=0.0)  # [BLOCK_N, BLOCK_K]
        else:
            is_term = first_term + terms[None, :] < NUM_INPUTS
            x = tl.load(x_at, mask=is_row & is_term, other=0.0)
            weight = tl.load(weight_at, mask=is_column[:, None] & is_term, other=0.0)
        total = tl.dot(x, tl.trans(weight), total, input_precision="ieee")
        x_at += BLOCK_K
        weight_at += BLOCK_K

    total += tl.load(bias_ptr + columns, mask=is_column, other=0.0).to(tl.float32)[None, :]
    out_at = out_ptr + rows[:, None].to(tl.int64) * NUM_OUTPUTS + columns[None, :]
    out = gelu_for(total, out_ptr.dtype.element_ty)
    tl.store(out_at, out.to(out_ptr.dtype.element_ty), mask=is_row & is_column[None, :])


@triton.jit(do_not_specialize=["num_tokens"])
def _bulk_gemm_bias_gelu_kernel(
    x_blocks,
    weight_blocks,
    bias_ptr,
    out_blocks,
    num_tokens,
    NUM_OUTPUTS: tl.constexpr,
    NUM_INPUTS: tl.constexpr,
    GROUP_M: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PERSISTENT: tl.constexpr,
):
    """The same from descriptors: what lies outside [T, K] or [N, K] is read as 0."""
    first = tl.program_id(0)
    if PERSISTENT:
        tiles = tl.cdiv(num_tokens, BLOCK_M) * ((NUM_OUTPUTS + BLOCK_N - 1) // BLOCK_N)
        for tile in tl.range(first, tiles, tl.num_programs(0), flatten=True):
            row, column = _place(tile, num_tokens, NUM_OUTPUTS, GROUP_M, BLOCK_M, BLOCK_N)
            _compute_tile(
                x_blocks,
                weight_blocks,
                bias_ptr,
                out_blocks,
                row,
                column,
                NUM_OUTPUTS,
                NUM_INPUTS,
                BLOCK_M,
                BLOCK_N,
                BLOCK_K,
            )
    else:
        row, column = _place(first, num_tokens, NUM_OUTPUTS, GROUP_M, BLOCK_M, BLOCK_N)
        _compute_tile(
            x_blocks,
            weight_blocks,
            bias_ptr,
            out_blocks,
            row,
            column,
            NUM_OUTPUTS,
            NUM_INPUTS,
            BLOCK_M,
            BLOCK_N,
            BLOCK_K,
        )


@triton.jit
def _compute_tile(
    x_blocks,
    weight_blocks,
    bias_ptr,
    out_blocks,
    row,
    column,
    NUM_OUTPUTS: tl.constexpr,
    NUM_INPUTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Product, bias, GELU, store; what lies outside [T, N] is not written."""
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first_term in range(0, NUM_INPUTS, BLOCK_K):
        x = x_blocks.load([row, first_term])  # [BLOCK_M, BLOCK_K]
        weight = weight_blocks.load([column, first_term])  # [BLOCK_N, BLOCK_K]
        total = tl.dot(x, weight.T, total, input_precision="ieee")
    columns = column + tl.arange(0, BLOCK_N)
    bias = tl.load(bias_ptr + columns, mask=columns < NUM_OUTPUTS, other=0.0).to(tl.float32)
    out = gelu_for(total + bias[None, :], out_blocks.dtype)
    out_blocks.store([row, column], out.to(out_blocks.dtype))


def plan_gemm_bias_gelu(
    x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, tile: GemmTile
) -> Launch:
    """The launch that writes the activations to ``out``; arguments are not checked."""
    num_tokens, num_inputs = x.shape
    num_outputs = weight.shape[0]
    programs = ceil_div(num_tokens, tile.block_m) * ceil_div(num_outputs, tile.block_n)
    constants: dict[str, int | bool] = {
        "NUM_OUTPUTS": num_outputs,
        "NUM_INPUTS": num_inputs,
        "GROUP_M": GROUP_M,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_K": tile.block_k,
    }
    if tile.bulk:
        kernel = _bulk_gemm_bias_gelu_kernel
        arguments = {
            "x_blocks": TensorDescriptor.from_tensor(x, [tile.block_m, tile.block_k]),
            "weight_blocks": TensorDescriptor.from_tensor(weight, [tile.block_n, tile.block_k]),
            "bias_ptr": bias,
            "out_blocks": TensorDescriptor.from_tensor(out, [tile.block_m, tile.block_n]),
        }
        constants["PERSISTENT"] = tile.persistent
        if tile.persistent:
            programs = min(programs, multiprocessors(x))
    else:
        kernel = _gemm_bias_gelu_kernel
        arguments = {"x_ptr": x, "weight_ptr": weight, "bias_ptr": bias, "out_ptr": out}
    return Launch(
        kernel=kernel,
        grid=(programs,),
        arguments={**arguments, "num_tokens": num_tokens},
        constants=constants,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def gemm_bias_gelu(
    x: Tensor, weight: Tensor, bias: Tensor, tile: GemmTile = CANDIDATES[2]
) -> Tensor:
    """``GELU(x W^T + bias)`` in one kernel, with the exact error function.

    Args:
        x: [T, K] fp16, bf16 or fp32, contiguous, on CUDA.
        weight: [N, K] as ``x``.
        bias: [N] as ``x``.
        tile: Block sizes; any is right, one is quickest.

    Returns:
        [T, N] in the dtype of ``x``; summed and activated in fp32, rounded once.

    Raises:
        ValueError: Shape, dtype, layout or device do not fit.

    Source: Hendrycks and Gimpel 2016, section 2, arXiv:1606.08415 (GELU); the order of the programs
        is that of Triton's own tutorial on matrix multiplication.
    """
    check_gemm_bias_gelu(x, weight, bias, KERNEL_DTYPES)
    row_bytes = (x.shape[1] * x.element_size(), len(weight) * x.element_size())
    if tile.bulk and any(size % BULK_ALIGNMENT for size in row_bytes):
        raise ValueError(
            f"x has {x.shape[1]} columns and the result {len(weight)}: rows of so many "
            f"{x.element_size()}-byte elements are no multiple of {BULK_ALIGNMENT} bytes, which "
            f"{tile} needs"
        )
    out = x.new_empty((x.shape[0], weight.shape[0]))
    if len(x):
        plan_gemm_bias_gelu(x, weight, bias, out, tile).run()
    return out


def gemm_bias_gelu_reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What ``gemm_bias_gelu`` must give; float64 when given float64, otherwise fp32."""
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32
    product = x.to(exact) @ weight.to(exact).T
    return bias_gelu_reference(product, bias.to(exact)).to(x.dtype)


def measured_tile(
    architecture: int, num_outputs: int, num_inputs: int, num_tokens: int
) -> GemmTile | None:
    """The tile that serves this shape, or None where cuBLASLt does."""
    return MEASURED.get((architecture, num_outputs, num_inputs, next_power_of_2(num_tokens)))


_product_then_gelu = linear_gelu_with(bias_gelu)


def linear_gelu(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor | None,
    input_scale: Tensor | None,
    bias: Tensor,
) -> Tensor:
    """``bertron::linear_gelu`` on CUDA; arguments as :func:`bertron_kernels.linear.linear`'s."""
    tile = _tile_for(x, weight, bias)
    if tile is None:
        return _product_then_gelu(x, weight, weight_scale, input_scale, bias)
    return gemm_bias_gelu(x.to(weight.dtype).contiguous(), weight, bias, tile)


def _tile_for(x: Tensor, weight: Tensor, bias: Tensor) -> GemmTile | None:
    """The measured tile, or None where the arguments are not of the measured kind."""
    if not weight.is_cuda or weight.dim() != 2:
        return None
    if weight.element_size() != 2 or bias.dtype != weight.dtype:
        return None
    if x.data_ptr() % BULK_ALIGNMENT or weight.data_ptr() % BULK_ALIGNMENT:
        return None
    num_outputs, num_inputs = weight.shape
    return measured_tile(capability(weight.get_device()), num_outputs, num_inputs, x.shape[0])
