"""Int8 weights: one scale an output channel, symmetric; activations are quantised as they come.

The float weights around them (embeddings, norms, biases) and the activations are bfloat16. What it
costs in accuracy is measured by every export: see :mod:`bertron_torchscript.verification`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bertron_torchscript.bert import LINEARS, Bert

LARGEST = 127  # -128 is left out, so that the range is symmetric


def quantize(model: Bert) -> Bert:
    """Make ``model``, in float32, one of int8 products; in place, and returned."""
    quantized = [
        (layer, name, *quantize_weight(getattr(layer, f"{name}_weight")))
        for layer in model.layers
        for name in LINEARS
    ]
    model.to(torch.bfloat16)
    for layer, name, weight, scale in quantized:
        setattr(layer, f"{name}_weight", nn.Parameter(weight, requires_grad=False))
        setattr(layer, f"{name}_scale", scale)
    return model


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[N, K] float → [N, K] int8 and [N] float32, with ``weight ≈ scale * int8``."""
    largest = weight.abs().amax(1)
    scale = torch.where(largest > 0, largest / LARGEST, torch.ones_like(largest))
    return torch.round(weight / scale[:, None]).to(torch.int8), scale.to(torch.float32)
