"""Matrix product x W^T whose epilogue does what follows it before anything is stored.

Three epilogues: ``bias``; ``gelu``, bias and exact GELU, where cuBLASLt's own has the tanh
approximation only and the exact one costs another pass over [T, N]; ``partials``, the sums alone,
or for split-K parts of them: the terms are split among programs, each stores its part, and whoever
reads them adds (``layer_norm``). Which tile serves which shape is ``gpu_linear``'s matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bertron_kernels.arguments import KERNEL_DTYPES, check_gemm
from bertron_kernels.gelu import bias_gelu_reference, gelu_for
from bertron_kernels.language import TensorDescriptor, tl, triton
from bertron_kernels.launch import BULK_ALIGNMENT, Launch, ceil_div, multiprocessors
from bertron_kernels.overlap import let_next_start, overlaps, prefetch, wait_for_previous

BIAS, GELU, PARTIALS = EPILOGUES = ("bias", "gelu", "partials")


@dataclass(frozen=True)
class GemmTile:
    """What one program computes: ``block_m`` x ``block_n`` outputs, ``block_k`` terms at a time.

    Attributes:
        bulk: Blocks are copied by the chip's own copy unit (TMA), which sm_90 has first: no thread
            computes an address. Rows must be multiples of 16 bytes.
        persistent: As many programs as the chip runs at once, each for several tiles in turn.
        splits: Programs that share the terms of one tile, whose sums stay partial.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    bulk: bool = False
    persistent: bool = False
    splits: int = 1

    def __str__(self) -> str:
        """Block sizes, warps, stages and ways: ``64x128x64-w4-s3-bulk``."""
        blocks = f"{self.block_m}x{self.block_n}x{self.block_k}"
        ways = "-bulk" * self.bulk + "-persistent" * self.persistent
        ways += f"-k{self.splits}" * (self.splits > 1)
        return f"{blocks}-w{self.num_warps}-s{self.num_stages}{ways}"

    def epilogues(self) -> tuple[str, ...]:
        """Those that it can have."""
        return (PARTIALS,) if self.splits > 1 else EPILOGUES


M16_N64 = GemmTile(16, 64, 64, num_warps=4, num_stages=4)
M64_N64 = GemmTile(64, 64, 64, num_warps=4, num_stages=4)
M64_N64_BULK = GemmTile(64, 64, 64, num_warps=4, num_stages=4, bulk=True)
M128_N128_BULK = GemmTile(128, 128, 64, num_warps=8, num_stages=3, bulk=True)
M128_N128_PERSISTENT = GemmTile(128, 128, 64, num_warps=8, num_stages=4, bulk=True, persistent=True)
M128_N256_PERSISTENT = GemmTile(128, 256, 64, num_warps=8, num_stages=3, bulk=True, persistent=True)

# All that is ever compiled; the compile gate holds each to no spills. The first dozen are for few
# tokens, whose product is as long as its slowest program: more programs with fewer columns or terms
# each, and more of a program's terms on their way at once.
CANDIDATES = (
    M16_N64,
    GemmTile(32, 64, 64, num_warps=4, num_stages=4),
    M64_N64,
    GemmTile(16, 32, 128, num_warps=4, num_stages=4),
    GemmTile(32, 32, 128, num_warps=4, num_stages=4),
    GemmTile(64, 64, 128, num_warps=4, num_stages=3),
    GemmTile(16, 64, 64, num_warps=4, num_stages=4, splits=4),
    GemmTile(16, 64, 64, num_warps=4, num_stages=4, splits=8),
    GemmTile(32, 64, 64, num_warps=4, num_stages=4, splits=4),
    GemmTile(64, 64, 64, num_warps=4, num_stages=4, splits=2),
    GemmTile(64, 64, 64, num_warps=4, num_stages=4, splits=4),
    GemmTile(64, 64, 64, num_warps=4, num_stages=4, splits=8),
    M64_N64_BULK,
    GemmTile(64, 128, 64, num_warps=4, num_stages=4, bulk=True),
    GemmTile(128, 128, 64, num_warps=4, num_stages=3, bulk=True),
    M128_N128_BULK,
    GemmTile(128, 256, 64, num_warps=8, num_stages=3, bulk=True),
    M128_N128_PERSISTENT,
    M128_N256_PERSISTENT,
)

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


@triton.jit
def _start_early(
    weight_ptr,
    columns,
    first_term,
    NUM_OUTPUTS: tl.constexpr,
    NUM_INPUTS: tl.constexpr,
    TERMS: tl.constexpr,
):
    """Let the next kernel start, ask for so many terms of these columns' weights, then wait."""
    let_next_start()
    LINE: tl.constexpr = 128 * 8 // weight_ptr.dtype.element_ty.primitive_bitwidth
    starts = tl.minimum(columns, NUM_OUTPUTS - 1) * NUM_INPUTS + first_term
    for line in range(0, TERMS, LINE):
        prefetch(weight_ptr + tl.minimum(starts + line, NUM_OUTPUTS * NUM_INPUTS - 1))
    wait_for_previous()


@triton.jit
def _finish(
    total, bias_ptr, columns, NUM_OUTPUTS: tl.constexpr, EPILOGUE: tl.constexpr, DTYPE: tl.constexpr
):
    """What is stored for sums [BLOCK_M, BLOCK_N] of these columns."""
    if EPILOGUE != "partials":
        bias = tl.load(bias_ptr + columns, mask=columns < NUM_OUTPUTS, other=0.0)
        total += bias.to(tl.float32)[None, :]
    if EPILOGUE == "gelu":
        total = gelu_for(total, DTYPE)
    return total.to(DTYPE)


@triton.jit(do_not_specialize=["num_tokens"])
def _gemm_kernel(
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
    EPILOGUE: tl.constexpr,
    OVERLAPS: tl.constexpr,
    TERMS: tl.constexpr,
):
    row, column = _place(tl.program_id(0), num_tokens, NUM_OUTPUTS, GROUP_M, BLOCK_M, BLOCK_N)
    rows = row + tl.arange(0, BLOCK_M)
    columns = column + tl.arange(0, BLOCK_N)
    terms = tl.arange(0, BLOCK_K)
    if TERMS < NUM_INPUTS:
        terms += tl.program_id(1) * TERMS
    is_row = rows[:, None] < num_tokens
    is_column = columns < NUM_OUTPUTS
    if OVERLAPS:
        first_term = tl.program_id(1) * TERMS if TERMS < NUM_INPUTS else 0
        _start_early(weight_ptr, columns, first_term, NUM_OUTPUTS, NUM_INPUTS, TERMS)

    x_at = x_ptr + rows[:, None].to(tl.int64) * NUM_INPUTS + terms[None, :]
    weight_at = weight_ptr + columns[:, None] * NUM_INPUTS + terms[None, :]
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first_term in range(0, TERMS, BLOCK_K):
        if NUM_INPUTS % TERMS == 0 and NUM_INPUTS > 0:
            x = tl.load(x_at, mask=is_row, other=0.0)  # [BLOCK_M, BLOCK_K]
            weight = tl.load(weight_at, mask=is_column[:, None], other=0.0)  # [BLOCK_N, BLOCK_K]
        else:
            is_term = first_term + terms[None, :] < NUM_INPUTS
            x = tl.load(x_at, mask=is_row & is_term, other=0.0)
            weight = tl.load(weight_at, mask=is_column[:, None] & is_term, other=0.0)
        total = tl.dot(x, tl.trans(weight), total, input_precision="ieee")
        x_at += BLOCK_K
        weight_at += BLOCK_K

    out = _finish(total, bias_ptr, columns, NUM_OUTPUTS, EPILOGUE, out_ptr.dtype.element_ty)
    out_rows = rows[:, None].to(tl.int64)
    if TERMS < NUM_INPUTS:  # behind the other parts' sums
        out_rows += tl.program_id(1).to(tl.int64) * num_tokens
    out_at = out_ptr + out_rows * NUM_OUTPUTS + columns[None, :]
    tl.store(out_at, out, mask=is_row & is_column[None, :])


@triton.jit(do_not_specialize=["num_tokens"])
def _bulk_gemm_kernel(
    x_blocks,
    weight_blocks,
    weight_ptr,
    bias_ptr,
    out_blocks,
    num_tokens,
    NUM_OUTPUTS: tl.constexpr,
    NUM_INPUTS: tl.constexpr,
    GROUP_M: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EPILOGUE: tl.constexpr,
    OVERLAPS: tl.constexpr,
    PERSISTENT: tl.constexpr,
):
    """The same from descriptors: what lies outside [T, K] or [N, K] is read as 0."""
    first = tl.program_id(0)
    if OVERLAPS:
        _, column = _place(first, num_tokens, NUM_OUTPUTS, GROUP_M, BLOCK_M, BLOCK_N)
        columns = column + tl.arange(0, BLOCK_N)
        _start_early(weight_ptr, columns, 0, NUM_OUTPUTS, NUM_INPUTS, NUM_INPUTS)
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
                EPILOGUE,
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
            EPILOGUE,
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
    EPILOGUE: tl.constexpr,
):
    """Product, epilogue, store; what lies outside [T, N] is not written."""
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first_term in range(0, NUM_INPUTS, BLOCK_K):
        x = x_blocks.load([row, first_term])  # [BLOCK_M, BLOCK_K]
        weight = weight_blocks.load([column, first_term])  # [BLOCK_N, BLOCK_K]
        total = tl.dot(x, weight.T, total, input_precision="ieee")
    columns = column + tl.arange(0, BLOCK_N)
    out = _finish(total, bias_ptr, columns, NUM_OUTPUTS, EPILOGUE, out_blocks.dtype)
    out_blocks.store([row, column], out)


def plan_gemm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    epilogue: str,
    tile: GemmTile,
    overlap: bool | None = None,
) -> Launch:
    """The launch that writes the product to ``out``; arguments are not checked.

    ``overlap`` is instead of the table's.
    """
    num_tokens, num_inputs = x.shape
    num_outputs = weight.shape[0]
    programs = ceil_div(num_tokens, tile.block_m) * ceil_div(num_outputs, tile.block_n)
    if overlap is None:
        overlap = overlaps(x, num_tokens)
    constants: dict[str, int | bool | str] = {
        "NUM_OUTPUTS": num_outputs,
        "NUM_INPUTS": num_inputs,
        "GROUP_M": GROUP_M,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_K": tile.block_k,
        "EPILOGUE": epilogue,
        "OVERLAPS": overlap,
    }
    if tile.bulk:
        kernel, splits = _bulk_gemm_kernel, 1
        arguments = {
            "x_blocks": TensorDescriptor.from_tensor(x, [tile.block_m, tile.block_k]),
            "weight_blocks": TensorDescriptor.from_tensor(weight, [tile.block_n, tile.block_k]),
            "weight_ptr": weight,
            "bias_ptr": bias,
            "out_blocks": TensorDescriptor.from_tensor(
                out.flatten(0, -2), [tile.block_m, tile.block_n]
            ),
        }
        constants["PERSISTENT"] = tile.persistent
        if tile.persistent:
            programs = min(programs, multiprocessors(x))
    else:
        kernel = _gemm_kernel
        terms, splits = split_terms(num_inputs, tile)
        arguments = {"x_ptr": x, "weight_ptr": weight, "bias_ptr": bias, "out_ptr": out}
        constants["TERMS"] = terms
    return Launch(
        kernel=kernel,
        grid=(programs, splits),
        arguments={**arguments, "num_tokens": num_tokens},
        constants=constants,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def split_terms(num_inputs: int, tile: GemmTile) -> tuple[int, int]:
    """(terms of a part, parts) of a sum of so many terms: whole blocks, and no part without any."""
    blocks = max(1, ceil_div(num_inputs, tile.block_k))
    blocks_a_part = ceil_div(blocks, tile.splits)
    return blocks_a_part * tile.block_k, ceil_div(blocks, blocks_a_part)


def gemm(x: Tensor, weight: Tensor, bias: Tensor, epilogue: str, tile: GemmTile) -> Tensor:
    """``x W^T + bias``, or GELU of it with the exact error function, in one kernel.

    Args:
        x: [T, K] fp16, bf16 or fp32, contiguous, on CUDA.
        weight: [N, K] as ``x``.
        bias: [N] as ``x``.
        epilogue: ``bias`` or ``gelu``.
        tile: Block sizes; any that has this epilogue is right, one is quickest.

    Returns:
        [T, N] in the dtype of ``x``; summed and activated in fp32, rounded once.

    Raises:
        ValueError: Shape, dtype, layout or device do not fit, or the tile has no such epilogue.

    Source: Hendrycks and Gimpel 2016, section 2, arXiv:1606.08415 (GELU); the order of the programs
        is that of Triton's own tutorial on matrix multiplication.
    """
    _check(x, weight, bias, epilogue, tile)
    out = x.new_empty((x.shape[0], weight.shape[0]))
    if len(x):
        plan_gemm(x, weight, bias, out, epilogue, tile).run()
    return out


def gemm_partials(x: Tensor, weight: Tensor, tile: GemmTile) -> Tensor:
    """Partial sums of ``x W^T``, whose sum over the first dimension is the product.

    Args:
        x: [T, K] fp16, bf16 or fp32, contiguous, on CUDA.
        weight: [N, K] as ``x``.
        tile: As :func:`gemm`'s; any has this epilogue.

    Returns:
        [P, T, N], P at most ``tile.splits``: fp32 where the tile splits, else the product alone in
        the dtype of ``x``.

    Raises:
        ValueError: As :func:`gemm`.
    """
    _check(x, weight, None, PARTIALS, tile)
    _, parts = split_terms(x.shape[1], tile)
    dtype = torch.float32 if tile.splits > 1 else x.dtype
    out = x.new_empty((parts, x.shape[0], weight.shape[0]), dtype=dtype)
    if len(x):
        plan_gemm(x, weight, None, out, PARTIALS, tile).run()
    return out


def gemm_reference(x: Tensor, weight: Tensor, bias: Tensor | None, epilogue: str) -> Tensor:
    """What the product must give, partial sums added; float64 when given float64, else fp32."""
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32
    product = x.to(exact) @ weight.to(exact).T
    if bias is not None:
        product += bias.to(exact)
    return bias_gelu_reference(product, None) if epilogue == GELU else product


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, epilogue: str, tile: GemmTile) -> None:
    check_gemm(x, weight, bias, KERNEL_DTYPES)
    if epilogue not in tile.epilogues() or (epilogue == PARTIALS) != (bias is None):
        raise ValueError(
            f"epilogue is {epilogue!r}, {'without' if bias is None else 'with'} a bias, expected "
            f"one of {', '.join(tile.epilogues())} for {tile}; partials have no bias"
        )
    row_bytes = (x.shape[1] * x.element_size(), len(weight) * x.element_size())
    if tile.bulk and any(size % BULK_ALIGNMENT for size in row_bytes):
        raise ValueError(
            f"x has {x.shape[1]} columns and the result {len(weight)}: rows of so many "
            f"{x.element_size()}-byte elements are no multiple of {BULK_ALIGNMENT} bytes, which "
            f"{tile} needs"
        )
