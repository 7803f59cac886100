"""What each op accepts, for every implementation alike.

Only shapes, dtypes, layouts and devices are looked at, never a tensor's values: on a GPU reading
one would wait for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_HIDDEN_SIZE = 8192  # one row must fit the registers of one program
MAX_HEAD_DIM = 256  # beyond it a tile of queries, keys and values leaves the registers
POOLING_MODES = ("cls", "last", "max", "mean", "mean-max")

# float64 is for tests of whole models on the CPU; no kernel takes it.
KERNEL_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
EAGER_DTYPES = (*KERNEL_DTYPES, torch.float64)
ID_DTYPES = (torch.int32, torch.int64)


def _check_tensor(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...]
) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)}, expected {list(shape)}")
    if tensor.dtype not in dtypes:
        expected = ", ".join(str(dtype) for dtype in dtypes)
        raise ValueError(f"{name} has dtype {tensor.dtype}, expected {expected}")
    if not tensor.is_contiguous():
        raise ValueError(
            f"{name} has strides {list(tensor.stride())} for shape {list(tensor.shape)}, expected a"
            " contiguous tensor; call .contiguous() on it"
        )


def _check_rank(name: str, tensor: Tensor, layout: str) -> None:
    if tensor.dim() != layout.count(",") + 1:
        raise ValueError(f"{name} has shape {list(tensor.shape)}, expected {layout}")


def _check_device(first: Tensor, **others: Tensor | None) -> None:
    for name, tensor in others.items():
        if tensor is not None and tensor.device != first.device:
            raise ValueError(
                f"{name} is on {tensor.device}, expected {first.device} like the other arguments"
            )


def _check_hidden_size(hidden_size: int) -> None:
    if not 1 <= hidden_size <= MAX_HIDDEN_SIZE:
        raise ValueError(f"hidden size is {hidden_size}, expected 1 to {MAX_HIDDEN_SIZE}")


def _check_cu_seqlens(cu_seqlens: Tensor) -> None:
    _check_rank("cu_seqlens", cu_seqlens, "[B + 1]")
    if len(cu_seqlens) == 0:
        raise ValueError("cu_seqlens has shape [0], expected [B + 1] with a leading 0")
    _check_tensor("cu_seqlens", cu_seqlens, (len(cu_seqlens),), (torch.int32,))


def check_varlen_attention(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dtypes: tuple[torch.dtype, ...]
) -> None:
    """Raise ValueError unless the arguments fit ``varlen_attention``."""
    _check_rank("qkv", qkv, "[T, 3, H, D]")
    num_tokens, _, num_heads, head_dim = qkv.shape
    _check_tensor("qkv", qkv, (num_tokens, 3, num_heads, head_dim), dtypes)
    _check_cu_seqlens(cu_seqlens)
    _check_device(qkv, cu_seqlens=cu_seqlens)
    if max_seqlen < 0:
        raise ValueError(f"max_seqlen is {max_seqlen}, expected at least 0")


def check_add_layer_norm(
    x: Tensor,
    residual: Tensor | None,
    bias: Tensor | None,
    weight: Tensor,
    norm_bias: Tensor,
    dtypes: tuple[torch.dtype, ...],
) -> None:
    """Raise ValueError unless the arguments fit ``add_layer_norm``."""
    _check_rank("x", x, "[T, E]")
    num_tokens, hidden_size = x.shape
    _check_hidden_size(hidden_size)
    _check_tensor("x", x, (num_tokens, hidden_size), dtypes)
    _check_tensor("weight", weight, (hidden_size,), dtypes)
    like_weight = (weight.dtype,)
    if residual is not None:
        _check_tensor("residual", residual, (num_tokens, hidden_size), like_weight)
    if bias is not None:
        _check_tensor("bias", bias, (hidden_size,), like_weight)
    _check_tensor("norm_bias", norm_bias, (hidden_size,), like_weight)
    _check_device(x, residual=residual, bias=bias, weight=weight, norm_bias=norm_bias)


def check_partials(partials: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    """Raise ValueError unless ``partials`` are what ``gemm_partials`` gives."""
    _check_rank("partials", partials, "[P, T, E]")
    if len(partials) == 0:
        raise ValueError("partials has shape [0, ...], expected [P, T, E] of at least one part")
    _check_tensor("partials", partials, tuple(partials.shape), dtypes)


def check_bias_gelu(x: Tensor, bias: Tensor | None, dtypes: tuple[torch.dtype, ...]) -> None:
    """Raise ValueError unless the arguments fit ``bias_gelu``."""
    _check_rank("x", x, "[T, I]")
    num_tokens, intermediate_size = x.shape
    _check_tensor("x", x, (num_tokens, intermediate_size), dtypes)
    if bias is not None:
        _check_tensor("bias", bias, (intermediate_size,), (x.dtype,))
    _check_device(x, bias=bias)


def check_gemm(
    x: Tensor, weight: Tensor, bias: Tensor | None, dtypes: tuple[torch.dtype, ...]
) -> None:
    """Raise ValueError unless the arguments fit ``gemm``, or without a bias ``gemm_partials``."""
    _check_rank("x", x, "[T, K]")
    _check_rank("weight", weight, "[N, K]")
    num_tokens, num_inputs = x.shape
    num_outputs = weight.shape[0]
    _check_tensor("x", x, (num_tokens, num_inputs), dtypes)
    _check_tensor("weight", weight, (num_outputs, num_inputs), (x.dtype,))
    if bias is not None:
        _check_tensor("bias", bias, (num_outputs,), (x.dtype,))
    _check_device(x, weight=weight, bias=bias)


def check_embedding_layer_norm(
    input_ids: Tensor,
    position_ids: Tensor,
    token_type_ids: Tensor | None,
    word_embeddings: Tensor,
    position_embeddings: Tensor,
    token_type_embeddings: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    dtypes: tuple[torch.dtype, ...],
) -> None:
    """Raise ValueError unless the arguments fit ``embedding_layer_norm``."""
    _check_rank("input_ids", input_ids, "[T]")
    _check_rank("word_embeddings", word_embeddings, "[vocabulary, E]")
    num_tokens = (len(input_ids),)
    hidden_size = word_embeddings.shape[1]
    _check_hidden_size(hidden_size)
    _check_tensor("word_embeddings", word_embeddings, (len(word_embeddings), hidden_size), dtypes)
    like_word = (word_embeddings.dtype,)
    if token_type_ids is not None and token_type_embeddings is None:
        raise ValueError("token_type_ids came without token_type_embeddings, expected both or none")

    _check_tensor("input_ids", input_ids, num_tokens, ID_DTYPES)
    _check_tensor("position_ids", position_ids, num_tokens, ID_DTYPES)
    if token_type_ids is not None:
        _check_tensor("token_type_ids", token_type_ids, num_tokens, ID_DTYPES)
    table = (len(position_embeddings), hidden_size)
    _check_tensor("position_embeddings", position_embeddings, table, like_word)
    if token_type_embeddings is not None:
        table = (len(token_type_embeddings), hidden_size)
        _check_tensor("token_type_embeddings", token_type_embeddings, table, like_word)
    _check_tensor("weight", weight, (hidden_size,), like_word)
    _check_tensor("bias", bias, (hidden_size,), like_word)
    _check_device(
        word_embeddings,
        input_ids=input_ids,
        position_ids=position_ids,
        token_type_ids=token_type_ids,
        position_embeddings=position_embeddings,
        token_type_embeddings=token_type_embeddings,
        weight=weight,
        bias=bias,
    )


def check_pool(
    hidden_states: Tensor, cu_seqlens: Tensor, mode: str, dtypes: tuple[torch.dtype, ...]
) -> None:
    """Raise ValueError unless the arguments fit ``pool``."""
    _check_rank("hidden_states", hidden_states, "[T, E]")
    _check_hidden_size(hidden_states.shape[1])
    _check_tensor("hidden_states", hidden_states, tuple(hidden_states.shape), dtypes)
    _check_cu_seqlens(cu_seqlens)
    _check_device(hidden_states, cu_seqlens=cu_seqlens)
    if mode not in POOLING_MODES:
        raise ValueError(f"mode is {mode!r}, expected one of {', '.join(POOLING_MODES)}")
