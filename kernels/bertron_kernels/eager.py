"""The ops from PyTorch's own operators: what the CPU runs, and CUDA where Triton is missing.

Packed like the kernels: no padding token is ever computed. fp16, bf16 and fp32, and float64 for
tests of whole models; sums and statistics are fp32 or wider.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import groupby, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from bertron_kernels.arguments import (
    EAGER_DTYPES,
    check_add_layer_norm,
    check_bias_gelu,
    check_embedding_layer_norm,
    check_pool,
    check_varlen_attention,
)
from bertron_kernels.pooling import MIN_NORM, pooled_shape

# Up to this many tokens two batched products and a softmax in fp32 are 0 to 20 % faster than the
# fused attention: 32 real texts, 12 heads of 32 and 64, interleaved runs, Zen 4, torch 2.13.
UNFUSED_MAX_SEQLEN = 64


def varlen_attention(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, softmax_scale: float
) -> Tensor:
    """``bertron::varlen_attention``, sequences of one length at a time.

    Any head_dim.

    Raises:
        ValueError: Shape, dtype, layout or device do not fit; ``cu_seqlens`` does not rise from 0
            to T; a sequence is longer than ``max_seqlen``.
    """
    check_varlen_attention(qkv, cu_seqlens, max_seqlen, EAGER_DTYPES)
    num_tokens, _, num_heads, head_dim = qkv.shape
    out = qkv.new_empty((num_tokens, num_heads, head_dim))
    bounds = tuple(cu_seqlens.tolist())
    for length, starts in _group_by_length(bounds, num_tokens, max_seqlen):
        attend = _attend_unfused if length <= UNFUSED_MAX_SEQLEN else _attend_fused
        if len(starts) * length == starts[-1] + length - starts[0]:  # neighbours: no copy
            rows = slice(starts[0], starts[-1] + length)
            same_length = qkv[rows].view(len(starts), length, 3, num_heads, head_dim)
            attend(same_length, softmax_scale, out[rows].view(len(starts), length, num_heads, -1))
        else:
            index = _token_index(starts, length)
            if qkv.is_cuda:
                index = index.to(qkv.device)
            same_length = qkv[index]  # [n, length, 3, H, D]
            context = same_length.new_empty((*index.shape, num_heads, head_dim))
            attend(same_length, softmax_scale, context)
            out[index] = context
    return out


def _attend_unfused(qkv: Tensor, softmax_scale: float, out: Tensor) -> None:
    """Attention inside each of n sequences [n, s, 3, H, D], written to ``out`` [n, s, H, D]."""
    count, length, _, num_heads, head_dim = qkv.shape
    exact = torch.promote_types(qkv.dtype, torch.float32)
    heads = torch.empty((3, count, num_heads, length, head_dim), dtype=exact, device=qkv.device)
    heads.copy_(qkv.permute(2, 0, 3, 1, 4))
    query, key, value = heads.view(3, count * num_heads, length, head_dim).unbind()
    scores = torch.baddbmm(heads.new_empty(1), query, key.mT, beta=0, alpha=softmax_scale)
    context = torch.bmm(scores.softmax(-1), value)  # [n * H, s, D]
    out.copy_(context.view(count, num_heads, length, head_dim).transpose(1, 2))


def _attend_fused(qkv: Tensor, softmax_scale: float, out: Tensor) -> None:
    """The same as ``_attend_unfused``, without its [s, s] scores in memory."""
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind()  # each [n, H, s, D]
    context = F.scaled_dot_product_attention(query, key, value, scale=softmax_scale)
    out.copy_(context.transpose(1, 2))


# Every layer of one forward asks for the same grouping.
@lru_cache(maxsize=16)
def _group_by_length(
    bounds: tuple[int, ...], num_tokens: int, max_seqlen: int
) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """(length, first rows of the sequences of that length), without empty sequences."""
    _check_bounds(bounds, num_tokens)
    sequences = [(end - start, start) for start, end in pairwise(bounds) if end > start]
    longest = max(sequences, default=(0, 0))[0]
    if longest > max_seqlen:
        raise ValueError(
            f"cu_seqlens has a sequence of {longest} tokens, expected at most max_seqlen"
            f" {max_seqlen}"
        )
    return tuple(
        (length, tuple(start for _, start in group))
        for length, group in groupby(sorted(sequences), key=lambda sequence: sequence[0])
    )


def _check_bounds(bounds: tuple[int, ...], num_tokens: int) -> None:
    if bounds[0] != 0 or bounds[-1] != num_tokens:
        raise ValueError(
            f"cu_seqlens goes from {bounds[0]} to {bounds[-1]}, expected 0 to {num_tokens}"
        )
    for index, (start, end) in enumerate(pairwise(bounds)):
        if end < start:
            raise ValueError(
                f"cu_seqlens falls from {start} to {end} at {index + 1}, expected it to rise"
            )


@lru_cache(maxsize=512)
def _token_index(starts: tuple[int, ...], length: int) -> Tensor:
    """[n, length] int64: the rows of each sequence's tokens."""
    return torch.tensor(starts)[:, None] + torch.arange(length)


def add_layer_norm(
    x: Tensor,
    residual: Tensor | None,
    bias: Tensor | None,
    weight: Tensor,
    norm_bias: Tensor,
    eps: float,
) -> Tensor:
    """``bertron::add_layer_norm``; see the kernel's launcher of the same name."""
    check_add_layer_norm(x, residual, bias, weight, norm_bias, EAGER_DTYPES)
    if residual is None and bias is None and x.dtype == weight.dtype:
        return F.layer_norm(x, x.shape[-1:], weight, norm_bias, eps)
    total = x.to(torch.promote_types(x.dtype, torch.float32))
    for other in (residual, bias):
        if other is not None:
            total = total + other
    return _layer_norm(total, weight, norm_bias, eps)


def _layer_norm(total: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The layer norm of ``total`` in the dtype of ``weight``, which may be narrower."""
    exact = total.dtype
    out = F.layer_norm(total, total.shape[-1:], weight.to(exact), bias.to(exact), eps)
    return out.to(weight.dtype)


def bias_gelu(x: Tensor, bias: Tensor | None) -> Tensor:
    """``bertron::bias_gelu``; see the kernel's launcher of the same name."""
    check_bias_gelu(x, bias, EAGER_DTYPES)
    if bias is None:
        return F.gelu(x)
    # The sum is rounded to the dtype of x, as PyTorch's own two operators do: in fp32 it costs
    # twice the time. A matrix product adds its bias for nothing, and unrounded.
    total = x + bias
    torch.ops.aten.gelu_(total)
    return total


def embedding_layer_norm(
    input_ids: Tensor,
    position_ids: Tensor,
    token_type_ids: Tensor | None,
    word_embeddings: Tensor,
    position_embeddings: Tensor,
    token_type_embeddings: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> Tensor:
    """``bertron::embedding_layer_norm``; see the kernel's launcher of the same name.

    Raises:
        ValueError: As the launcher, and on the CPU for an id outside its table.
    """
    check_embedding_layer_norm(
        input_ids,
        position_ids,
        token_type_ids,
        word_embeddings,
        position_embeddings,
        token_type_embeddings,
        weight,
        bias,
        EAGER_DTYPES,
    )
    exact = torch.promote_types(word_embeddings.dtype, torch.float32)
    total = _look_up("input_ids", input_ids, word_embeddings).to(exact)
    total = total + _look_up("position_ids", position_ids, position_embeddings)
    if token_type_embeddings is not None:
        total += (
            token_type_embeddings[0]
            if token_type_ids is None
            else _look_up("token_type_ids", token_type_ids, token_type_embeddings)
        )
    return _layer_norm(total, weight, bias, eps)


def _look_up(name: str, ids: Tensor, table: Tensor) -> Tensor:
    try:
        return torch.embedding(table, ids)
    except IndexError:
        wrong = ids[(ids < 0) | (ids >= len(table))][0].item()
        raise ValueError(f"{name} has id {wrong}, expected 0 to {len(table) - 1}") from None


def pool(hidden_states: Tensor, cu_seqlens: Tensor, mode: str, normalize: bool) -> Tensor:
    """``bertron::pool``; see the kernel's launcher of the same name. float64 stays float64.

    Raises:
        ValueError: As the launcher, and where ``cu_seqlens`` does not rise from 0 to T.
    """
    check_pool(hidden_states, cu_seqlens, mode, EAGER_DTYPES)
    tokens = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
    bounds = tuple(cu_seqlens.tolist())
    _check_bounds(bounds, len(tokens))
    out = tokens.new_zeros(pooled_shape(hidden_states, cu_seqlens, mode))
    for row, (start, end) in zip(out.unbind(), pairwise(bounds), strict=True):
        if start < end:
            _pool_one(tokens[start:end], mode, row)
    if normalize:
        norm = torch.linalg.vector_norm(out, dim=1, keepdim=True)
        out /= norm.clamp_min_(MIN_NORM)
    return out


def _pool_one(tokens: Tensor, mode: str, out: Tensor) -> None:
    """One sequence [s, E], at least one token, to ``out`` [E] or [2E]."""
    if mode == "mean":
        torch.mean(tokens, 0, out=out)
    elif mode == "max":
        torch.amax(tokens, 0, out=out)
    elif mode == "mean-max":
        mean, largest = out.view(2, -1).unbind()
        torch.mean(tokens, 0, out=mean)
        torch.amax(tokens, 0, out=largest)
    else:
        out.copy_(tokens[0 if mode == "cls" else -1])
