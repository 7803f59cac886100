"""The ops around a matrix product on CUDA: by our own product where a measurement says so.

Elsewhere the product is cuBLAS's, by PyTorch, with our kernels after it (``linear``).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from bertron_kernels import gemm
from bertron_kernels import linear as library
from bertron_kernels.gelu import bias_gelu
from bertron_kernels.gemm import BIAS, GELU, PARTIALS, GemmTile
from bertron_kernels.launch import BULK_ALIGNMENT, capability, next_power_of_2
from bertron_kernels.layer_norm import add_layer_norm, add_partials_layer_norm

# Where a measurement found a tile quicker than cuBLASLt and what follows it, by (epilogue, compute
# capability, outputs N, inputs K, tokens T up to this power of two), for fp16 and bf16: from an
# H200 (benchmarks/results/gpu_tiles.md). On every other shape cuBLASLt serves.
MEASURED: Mapping[tuple[str, int, int, int, int], GemmTile] = {
    (GELU, 90, 3072, 768, 16): gemm.M16_N64,
    (GELU, 90, 3072, 768, 32): gemm.M16_N64,
    (GELU, 90, 3072, 768, 64): gemm.M16_N64,
    (GELU, 90, 3072, 768, 128): gemm.M64_N64,
    (GELU, 90, 3072, 768, 256): gemm.M64_N64_BULK,
    (GELU, 90, 3072, 768, 512): gemm.M64_N64_BULK,
    (GELU, 90, 3072, 768, 2048): gemm.M128_N128_PERSISTENT,
    (GELU, 90, 3072, 768, 4096): gemm.M128_N128_PERSISTENT,
    (GELU, 90, 3072, 768, 8192): gemm.M128_N128_PERSISTENT,
    (GELU, 90, 3072, 768, 16384): gemm.M128_N256_PERSISTENT,
    (GELU, 90, 1536, 384, 16): gemm.M16_N64,
    (GELU, 90, 1536, 384, 32): gemm.M16_N64,
    (GELU, 90, 1536, 384, 64): gemm.M16_N64,
    (GELU, 90, 1536, 384, 128): gemm.M64_N64,
    (GELU, 90, 1536, 384, 256): gemm.M64_N64,
    (GELU, 90, 1536, 384, 512): gemm.M64_N64_BULK,
    (GELU, 90, 1536, 384, 1024): gemm.M64_N64_BULK,
    (GELU, 90, 1536, 384, 2048): gemm.M128_N128_BULK,
    (GELU, 90, 1536, 384, 4096): gemm.M128_N128_BULK,
    (GELU, 90, 1536, 384, 8192): gemm.M128_N128_BULK,
    (GELU, 90, 1536, 384, 16384): gemm.M128_N128_BULK,
    (GELU, 90, 4096, 1024, 16): gemm.M16_N64,
    (GELU, 90, 4096, 1024, 32): gemm.M16_N64,
    (GELU, 90, 4096, 1024, 256): gemm.M64_N64_BULK,
    (GELU, 90, 4096, 1024, 512): gemm.M128_N128_PERSISTENT,
    (GELU, 90, 4096, 1024, 1024): gemm.M128_N128_BULK,
    (GELU, 90, 4096, 1024, 2048): gemm.M128_N128_PERSISTENT,
    (GELU, 90, 4096, 1024, 4096): gemm.M128_N128_PERSISTENT,
    (GELU, 90, 4096, 1024, 8192): gemm.M128_N256_PERSISTENT,
    (GELU, 90, 4096, 1024, 16384): gemm.M128_N256_PERSISTENT,
}


_library_linear_gelu = library.linear_gelu_with(bias_gelu)
_library_linear_add_layer_norm = library.linear_add_layer_norm_with(add_layer_norm)


def linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor | None,
    input_scale: Tensor | None,
    bias: Tensor,
) -> Tensor:
    """``bertron::linear`` on CUDA; arguments as :func:`bertron_kernels.linear.linear`'s."""
    tile = _tile_for(BIAS, x, weight, bias)
    if tile is None:
        return library.linear(x, weight, weight_scale, input_scale, bias)
    return gemm.gemm(x.to(weight.dtype).contiguous(), weight, bias, BIAS, tile)


def linear_gelu(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor | None,
    input_scale: Tensor | None,
    bias: Tensor,
) -> Tensor:
    """``bertron::linear_gelu`` on CUDA; arguments likewise."""
    tile = _tile_for(GELU, x, weight, bias)
    if tile is None:
        return _library_linear_gelu(x, weight, weight_scale, input_scale, bias)
    return gemm.gemm(x.to(weight.dtype).contiguous(), weight, bias, GELU, tile)


def linear_add_layer_norm(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor | None,
    input_scale: Tensor | None,
    bias: Tensor,
    residual: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
) -> Tensor:
    """``bertron::linear_add_layer_norm`` on CUDA; arguments likewise."""
    tile = _tile_for(PARTIALS, x, weight, None)
    if tile is None:
        return _library_linear_add_layer_norm(
            x, weight, weight_scale, input_scale, bias, residual, norm_weight, norm_bias, eps
        )
    partials = gemm.gemm_partials(x.to(weight.dtype).contiguous(), weight, tile)
    return add_partials_layer_norm(partials, residual, bias, norm_weight, norm_bias, eps)


def measured_tile(
    epilogue: str, architecture: int, num_outputs: int, num_inputs: int, num_tokens: int
) -> GemmTile | None:
    """The tile that serves this shape, or None where cuBLASLt does."""
    tokens = next_power_of_2(num_tokens)
    return MEASURED.get((epilogue, architecture, num_outputs, num_inputs, tokens))


def _tile_for(epilogue: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> GemmTile | None:
    """The measured tile, or None where the arguments are not of the measured kind."""
    if not weight.is_cuda or weight.dim() != 2:
        return None
    if weight.element_size() != 2 or (bias is not None and bias.dtype != weight.dtype):
        return None
    if x.data_ptr() % BULK_ALIGNMENT or weight.data_ptr() % BULK_ALIGNMENT:
        return None
    num_outputs, num_inputs = weight.shape
    device = capability(weight.get_device())
    return measured_tile(epilogue, device, num_outputs, num_inputs, x.shape[0])
