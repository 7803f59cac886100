"""The launchers under test by name: those behind the ops, and those that serve after a measurement.

Tiles go by their place among the candidates, since messages between processes hold numbers only.
"""

import torch
from bertron_kernels import attention, gemm_gelu
from bertron_kernels.ops import KERNELS


def attention_with_tile(qkv, cu_seqlens, max_seqlen, softmax_scale, place):
    tile = attention.CANDIDATES[attention.length_class(max_seqlen)][place]
    out = torch.empty((len(qkv), *qkv.shape[2:]), dtype=qkv.dtype, device=qkv.device)
    arguments = (qkv, cu_seqlens, max_seqlen, softmax_scale, out)
    attention.plan_varlen_attention(*arguments, tile=tile).run()
    return out


def gemm_with_tile(x, weight, bias, place):
    return gemm_gelu.gemm_bias_gelu(x, weight, bias, gemm_gelu.CANDIDATES[place])


LAUNCHERS = {
    **KERNELS,
    "attention_with_tile": attention_with_tile,
    "gemm_with_tile": gemm_with_tile,
}
