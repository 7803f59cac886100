"""Matrix product with bias, and what follows it: nothing, GELU, or add + layer norm.

The product itself is PyTorch's (cuBLASLt on CUDA, oneDNN or MKL on the CPU); what follows is the
device's own op, passed in. On the CPU the native library replaces all of it: see ``csrc``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

BiasGelu = Callable[[Tensor, Tensor | None], Tensor]
AddLayerNorm = Callable[[Tensor, Tensor | None, Tensor | None, Tensor, Tensor, float], Tensor]


def pack_weight(weight: Tensor, weight_scale: Tensor | None, input_scale: Tensor | None) -> Tensor:
    """``bertron::pack_weight`` where a product takes weights as they are: [N, K] → [N, K].

    An int8 weight is widened to float32: its products are right, not fast.

    Raises:
        ValueError: An int8 weight without its scale, or a scale without an int8 weight.
    """
    if weight.dim() != 2:
        raise ValueError(f"weight has {weight.dim()} dimensions, expected 2")
    is_int8 = weight.dtype == torch.int8
    if is_int8 != (weight_scale is not None) or (input_scale is not None and not is_int8):
        raise ValueError("weight_scale and input_scale come with an int8 weight, and with no other")
    if weight_scale is None:
        return weight.clone()
    for name, scale, size in (
        ("weight_scale", weight_scale, weight.shape[0]),
        ("input_scale", input_scale, weight.shape[1]),
    ):
        if scale is not None and scale.shape != (size,):
            raise ValueError(f"{name} is {list(scale.shape)}, expected [{size}]")
    widened = weight.to(torch.float32) * weight_scale[:, None]
    return widened if input_scale is None else widened * input_scale


def linear(
    x: Tensor,
    weight: Tensor,
    _weight_scale: Tensor | None,
    _input_scale: Tensor | None,
    bias: Tensor,
) -> Tensor:
    """``bertron::linear``: x W^T + bias.

    Args:
        x: [T, K].
        weight: What ``pack_weight`` gave for [N, K]; its dtype is that of the product.
        _weight_scale: Of an int8 weight; packing has applied it.
        _input_scale: Likewise.
        bias: [N]; its dtype is that of the output.

    Returns:
        [T, N].

    Raises:
        ValueError: The weight is not packed or does not fit.
    """
    _check(x, weight, bias)
    return F.linear(x.to(weight.dtype), weight, bias.to(weight.dtype)).to(bias.dtype)


def linear_gelu_with(bias_gelu: BiasGelu) -> Callable[..., Tensor]:
    """``bertron::linear_gelu`` around a device's ``bias_gelu``; arguments as ``linear``'s."""

    def linear_gelu(
        x: Tensor,
        weight: Tensor,
        _weight_scale: Tensor | None,
        _input_scale: Tensor | None,
        bias: Tensor,
    ) -> Tensor:
        _check(x, weight, bias)
        return bias_gelu(F.linear(x.to(weight.dtype), weight).to(bias.dtype), bias)

    return linear_gelu


def linear_add_layer_norm_with(add_layer_norm: AddLayerNorm) -> Callable[..., Tensor]:
    """``bertron::linear_add_layer_norm`` around a device's ``add_layer_norm``."""

    def linear_add_layer_norm(
        x: Tensor,
        weight: Tensor,
        _weight_scale: Tensor | None,
        _input_scale: Tensor | None,
        bias: Tensor,
        residual: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        eps: float,
    ) -> Tensor:
        _check(x, weight, bias)
        product = F.linear(x.to(weight.dtype), weight)
        return add_layer_norm(product, residual, bias, norm_weight, norm_bias, eps)

    return linear_add_layer_norm


def linear_reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``bertron::linear`` over an unpacked weight, in the dtype of its arguments."""
    return x @ weight.T + bias


def _check(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(
            f"weight is {str(weight.dtype).removeprefix('torch.')} with {weight.dim()} dimensions, "
            "expected what pack_weight gives on this device"
        )
    if x.dim() != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(f"x is {list(x.shape)}, expected [T, {weight.shape[1]}]")
    if bias.shape != weight.shape[:1]:
        raise ValueError(f"bias is {list(bias.shape)}, expected [{weight.shape[0]}]")
