"""Registers the ops of ``schemas`` with PyTorch: which code runs on which device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bertron_kernels import (
    attention,
    eager,
    embedding,
    gelu,
    gpu_linear,
    layer_norm,
    linear,
    native,
    pooling,
)
from bertron_kernels.language import HAS_TRITON
from bertron_kernels.schemas import NAMESPACE, SCHEMAS

EAGER = {
    "pack_weight": linear.pack_weight,
    "linear": linear.linear,
    "linear_gelu": linear.linear_gelu_with(eager.bias_gelu),
    "linear_add_layer_norm": linear.linear_add_layer_norm_with(eager.add_layer_norm),
    "varlen_attention": eager.varlen_attention,
    "add_layer_norm": eager.add_layer_norm,
    "bias_gelu": eager.bias_gelu,
    "embedding_layer_norm": eager.embedding_layer_norm,
    "pool": eager.pool,
}
KERNELS = {
    "pack_weight": linear.pack_weight,
    "linear": gpu_linear.linear,
    "linear_gelu": gpu_linear.linear_gelu,
    "linear_add_layer_norm": gpu_linear.linear_add_layer_norm,
    "varlen_attention": attention.varlen_attention,
    "add_layer_norm": layer_norm.add_layer_norm,
    "bias_gelu": gelu.bias_gelu,
    "embedding_layer_norm": embedding.embedding_layer_norm,
    "pool": pooling.pool,
}


def _fake_linear(
    x: Tensor, _weight: Tensor, _scale: object, _input_scale: object, bias: Tensor, *_others: object
) -> Tensor:
    return bias.new_empty((x.shape[0], bias.shape[0]))


def _fake_varlen_attention(qkv: Tensor, *_others: object) -> Tensor:
    return qkv.new_empty((qkv.shape[0], *qkv.shape[2:]))


def _fake_add_layer_norm(
    x: Tensor, _residual: Tensor | None, _bias: Tensor | None, weight: Tensor, *_others: object
) -> Tensor:
    return torch.empty_like(x, dtype=weight.dtype)


def _fake_like_first(x: Tensor, *_others: object) -> Tensor:
    return torch.empty_like(x)


def _fake_embedding_layer_norm(
    input_ids: Tensor,
    _position_ids: Tensor,
    _token_type_ids: Tensor | None,
    word_embeddings: Tensor,
    *_others: object,
) -> Tensor:
    return word_embeddings.new_empty((input_ids.shape[0], word_embeddings.shape[1]))


def _fake_pool(hidden_states: Tensor, cu_seqlens: Tensor, mode: str, _normalize: bool) -> Tensor:
    shape = pooling.pooled_shape(hidden_states, cu_seqlens, mode)
    exact = torch.promote_types(hidden_states.dtype, torch.float32)
    return hidden_states.new_empty(shape, dtype=exact)


# Shapes alone, for torch.export and torch.compile; a packed weight's are the device's own matter.
FAKES: dict[str, Callable[..., Any]] = {
    "linear": _fake_linear,
    "linear_gelu": _fake_linear,
    "linear_add_layer_norm": _fake_linear,
    "varlen_attention": _fake_varlen_attention,
    "add_layer_norm": _fake_add_layer_norm,
    "bias_gelu": _fake_like_first,
    "embedding_layer_norm": _fake_embedding_layer_norm,
    "pool": _fake_pool,
}


def implementation(device_type: str) -> str:
    """What the ops run on this kind of device.

    Args:
        device_type: ``cpu`` or ``cuda``.

    Returns:
        ``triton`` for the Triton-language kernels, ``eager`` for PyTorch's own operators, or the
        native library's instruction set: ``avx2``, ``avx512_vnni``, ``avx512_bf16``, ``amx``.

    Raises:
        ValueError: Another device.
    """
    if device_type not in ("cpu", "cuda"):
        raise ValueError(f"device type is {device_type!r}, expected cpu or cuda")
    if device_type == "cuda":
        return "triton" if HAS_TRITON else "eager"
    return native.INSTRUCTION_SET or "eager"


def _register() -> Any:
    """Define every op, and implement it for both devices."""
    library: Any = torch.library.Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]
    for name, signature in SCHEMAS.items():
        library.define(name + signature)
        if native.INSTRUCTION_SET is None:  # else the library has implemented it
            library.impl(name, EAGER[name], "CPU")
        library.impl(name, (KERNELS if HAS_TRITON else EAGER)[name], "CUDA")
        if name in FAKES:
            torch.library.register_fake(f"{NAMESPACE}::{name}", FAKES[name], lib=library)
    return library


# Dropping a Library takes its ops away: it lives as long as this module, a reload included.
_library = globals().get("_library") or _register()
