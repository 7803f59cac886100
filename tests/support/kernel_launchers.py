"""The launchers under test by name: those behind the ops, and those that serve after a measurement.

Tiles go by their place among the candidates, since messages between processes hold numbers only.
"""

import torch
from bertron_kernels import attention, gelu, gemm_gelu, layer_norm, pooling
from bertron_kernels.ops import KERNELS


def attention_with_tile(qkv, cu_seqlens, max_seqlen, softmax_scale, place):
    tile = attention.CANDIDATES[attention.length_class(max_seqlen)][place]
    out = torch.empty((len(qkv), *qkv.shape[2:]), dtype=qkv.dtype, device=qkv.device)
    arguments = (qkv, cu_seqlens, max_seqlen, softmax_scale, out)
    attention.plan_varlen_attention(*arguments, tile=tile).run()
    return out


def gemm_with_tile(x, weight, bias, place):
    return gemm_gelu.gemm_bias_gelu(x, weight, bias, gemm_gelu.CANDIDATES[place])


def norm_with_tile(x, residual, bias, weight, norm_bias, eps, place):
    out, tile = torch.empty_like(x, dtype=weight.dtype), layer_norm.CANDIDATES[place]
    arguments = (x, residual, bias, weight, norm_bias, eps, out)
    layer_norm.plan_add_layer_norm(*arguments, tile=tile).run()
    return out


def gelu_with_tile(x, bias, place):
    out = torch.empty_like(x)
    gelu.plan_bias_gelu(x, bias, out, gelu.CANDIDATES[place]).run()
    return out


def pool_with_tile(hidden_states, cu_seqlens, mode, normalize, place):
    shape = pooling.pooled_shape(hidden_states, cu_seqlens, mode)
    out = torch.empty(shape, dtype=torch.float32, device=hidden_states.device)
    tile = pooling.CANDIDATES[place]
    pooling.plan_pool(hidden_states, cu_seqlens, mode, normalize, out, tile).run()
    return out


LAUNCHERS = {
    **KERNELS,
    "attention_with_tile": attention_with_tile,
    "gemm_with_tile": gemm_with_tile,
    "norm_with_tile": norm_with_tile,
    "gelu_with_tile": gelu_with_tile,
    "pool_with_tile": pool_with_tile,
}
