"""The launchers under test by name: those behind the ops, and those that serve after a measurement.

Tiles go by their place among the candidates, since messages between processes hold numbers only.
"""

from bertron_kernels import attention, gelu, gemm, layer_norm, pooling
from bertron_kernels.ops import KERNELS


def attention_with_tile(qkv, cu_seqlens, max_seqlen, softmax_scale, place):
    tile = attention.CANDIDATES[attention.length_class(max_seqlen)][place]
    return attention.varlen_attention(qkv, cu_seqlens, max_seqlen, softmax_scale, tile)


def with_tile(launcher, tiles):
    return lambda *arguments: launcher(*arguments[:-1], tile=tiles[arguments[-1]])


LAUNCHERS = {
    **KERNELS,
    "attention_with_tile": attention_with_tile,
    "gemm_with_tile": with_tile(gemm.gemm, gemm.CANDIDATES),
    "gemm_partials_with_tile": with_tile(gemm.gemm_partials, gemm.CANDIDATES),
    "add_partials_layer_norm": layer_norm.add_partials_layer_norm,
    "norm_with_tile": with_tile(layer_norm.add_layer_norm, layer_norm.CANDIDATES),
    "gelu_with_tile": with_tile(gelu.bias_gelu, gelu.CANDIDATES),
    "pool_with_tile": with_tile(pooling.pool, pooling.CANDIDATES),
}
