"""Int8 products where the embeddings allow it, chosen by measurement on real texts.

A weight gets one scale an output channel; activations get scale and offset a token, when they come.
Before that a scale an input channel moves the spread of outlier channels from the activations into
the weights. What still costs too much stays bfloat16, as everything around the products does.

Source: Xiao et al. 2022, SmoothQuant, arXiv:2211.10438, section 4 (the input scales).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bertron_torchscript.bert import LINEARS, Bert
from bertron_torchscript.errors import ExportError

LARGEST_WEIGHT = 127  # -128 is left out, so that the range is symmetric
LARGEST_ACTIVATION = 255  # unsigned: GELU's outputs lie nearly all on one side of zero
# How far outliers move from activations into weights; None leaves them. SmoothQuant's alpha.
MIGRATIONS = (None, 0.3, 0.4, 0.5, 0.6, 0.7)
SAMPLED_ROWS = 512  # of each product's input, for the choice among MIGRATIONS
# Of the error that the export's gate allows; the rest is for texts that were not measured.
BUDGET = 0.7

# Tokens of a stretch, and how many such stretches stand beside the calibration texts. The shortest
# texts lose most: few tokens average out little.
STRETCHES = ((1, 256), (2, 128), (8, 64))

Packed = tuple[Tensor, Tensor, Tensor, int]  # the arguments of forward_packed


@dataclasses.dataclass(frozen=True)
class Int8Weight:
    """What replaces a weight [N, K]; see ``pack_weight`` in bertron_kernels.schemas."""

    weight: Tensor  # [N, K] int8
    scale: Tensor  # [N] float32
    input_scale: Tensor | None  # [K] float32


@torch.inference_mode()
def quantize(
    model: Bert, texts: Packed, required_cosine: float, progress: Callable[[str], None]
) -> None:
    """Give ``model`` int8 weights in place, as many as keep its embeddings, and bfloat16 else.

    Int8 products are the same on every CPU that has the library. Those of bfloat16 are float32,
    over the rounded weights, where the CPU has no quick bfloat16; what other CPUs then round
    besides is an order below what BUDGET leaves.

    Args:
        model: In float32, with weights as loaded, [N, K].
        texts: Packed texts that stand for those to come.
        required_cosine: Of every text's embedding with that of the float32 model.
        progress: Told what is going on.

    Raises:
        ExportError: Without the CPU library no int8 is multiplied, and nothing could be measured.
    """
    import bertron_kernels

    if bertron_kernels.implementation("cpu") == "eager":
        raise ExportError(
            "int8 is chosen by measurement, which needs the CPU library: build it with"
            " python -m bertron_kernels.build, and leave BERTRON_CPU_KERNELS unset"
        )
    products = [(layer, name) for layer in model.layers for name in LINEARS]
    wide = [getattr(layer, f"{name}_weight").detach() for layer, name in products]
    _set_all(products, [_packed(weight) for weight in wide])
    expected, inputs = _with_inputs(model, texts)
    progress(f"quantising {len(products)} products to int8")
    narrow = [_best(weight, rows) for weight, rows in zip(wide, inputs, strict=True)]

    as_bf16 = [_packed(weight.to(torch.bfloat16)) for weight in wide]
    as_int8 = [_packed_int8(weight) for weight in narrow]

    def error(chosen: set[int]) -> float:
        """The worst text's, with the chosen products in int8."""
        _set_all(products, [as_int8[i] if i in chosen else as_bf16[i] for i in range(len(wide))])
        found = model.forward_packed(*texts)
        return float(1 - F.cosine_similarity(found.double(), expected.double(), dim=1).min())

    progress("measuring what each of them costs")
    base = error(set())
    cost = [(error({i}) - base) / wide[i].numel() for i in range(len(wide))]
    cheapest_first = sorted(range(len(wide)), key=cost.__getitem__)
    allowed = max((1 - required_cosine) * BUDGET, base)
    # The most products, cheapest first, that stay within what is allowed.
    low, high = 0, len(wide)
    while low < high:
        middle = (low + high + 1) // 2
        if error(set(cheapest_first[:middle])) <= allowed:
            low = middle
        else:
            high = middle - 1
    chosen = set(cheapest_first[:low])
    share = sum(wide[i].numel() for i in chosen) / max(sum(w.numel() for w in wide), 1)
    progress(f"{low} of {len(wide)} products, {share:.0%} of the arithmetic, are int8")
    for i, (layer, name) in enumerate(products):
        if i in chosen:
            _set(layer, name, narrow[i].weight, narrow[i].scale, narrow[i].input_scale)
        else:
            _set(layer, name, wide[i].to(torch.bfloat16))


def with_stretches(token_ids: Sequence[list[int]]) -> list[list[int]]:
    """Texts, and short ones cut out of them at even distances.

    Args:
        token_ids: Of each text, its first and last token being special ones, which all keep.
    """
    texts = list(token_ids)
    for tokens, most in STRETCHES:
        stretches = [
            [ids[0], *ids[start : start + tokens], ids[-1]]
            for ids in token_ids
            for start in range(1, len(ids) - tokens, tokens)
        ]
        texts += stretches[:: -(-len(stretches) // most) or 1]
    return texts


def quantize_weight(weight: Tensor, input_scale: Tensor | None = None) -> Int8Weight:
    """The nearest int8 weight to ``weight`` [N, K], whose inputs come times ``input_scale`` [K]."""
    scaled = weight if input_scale is None else weight / input_scale
    largest = scaled.abs().amax(1)
    scale = torch.where(largest > 0, largest / LARGEST_WEIGHT, torch.ones_like(largest))
    rounded = torch.round(scaled / scale[:, None]).to(torch.int8)
    return Int8Weight(rounded, scale.to(torch.float32), input_scale)


def quantize_rows(x: Tensor) -> Tensor:
    """``x`` [T, K] as the int8 product sees it: the CPU library's arithmetic, in float."""
    low, high = x.amin(1, keepdim=True).clamp(max=0), x.amax(1, keepdim=True).clamp(min=0)
    scale = ((high - low) / LARGEST_ACTIVATION).clamp(min=torch.finfo(torch.float32).tiny)
    zero = torch.round(-low / scale)
    return ((torch.round(x / scale) + zero).clamp(0, LARGEST_ACTIVATION) - zero) * scale


def _best(weight: Tensor, rows: Tensor) -> Int8Weight:
    """The migration whose product with ``rows`` [T, K] is nearest to the exact one."""
    exact = rows @ weight.T

    def distance(candidate: Int8Weight) -> float:
        x = rows if candidate.input_scale is None else rows * candidate.input_scale
        product = quantize_rows(x) @ (candidate.weight.float() * candidate.scale[:, None]).T
        return float((product - exact).square().sum())

    return min(
        (quantize_weight(weight, scale) for scale in _input_scales(weight, rows)), key=distance
    )


def _input_scales(weight: Tensor, rows: Tensor) -> Iterator[Tensor | None]:
    activation = rows.abs().amax(0).clamp(min=1e-5)
    channel = weight.abs().amax(0).clamp(min=1e-5)
    for alpha in MIGRATIONS:
        yield None if alpha is None else channel ** (1 - alpha) / activation**alpha


class _Inputs(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps a sample of what each matrix product reads, in the order of the products."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func.overloadpacket in _PRODUCTS:
            step = max(1, len(args[0]) // SAMPLED_ROWS)
            self.rows.append(args[0][::step].clone())
        return func(*args, **(kwargs or {}))


_PRODUCTS = (
    torch.ops.bertron.linear,
    torch.ops.bertron.linear_gelu,
    torch.ops.bertron.linear_add_layer_norm,
)


def _with_inputs(model: Bert, texts: Packed) -> tuple[Tensor, list[Tensor]]:
    with _Inputs() as inputs:
        embeddings = model.forward_packed(*texts)
    return embeddings, inputs.rows


_Stored = tuple[Tensor, Tensor | None, Tensor | None]


def _packed(weight: Tensor) -> _Stored:
    return torch.ops.bertron.pack_weight(weight, None, None), None, None


def _packed_int8(weight: Int8Weight) -> _Stored:
    packed = torch.ops.bertron.pack_weight(weight.weight, weight.scale, weight.input_scale)
    return packed, weight.scale, weight.input_scale


def _set_all(products: list[tuple[nn.Module, str]], stored: list[_Stored]) -> None:
    for (layer, name), values in zip(products, stored, strict=True):
        _set(layer, name, *values)


def _set(
    layer: nn.Module,
    name: str,
    weight: Tensor,
    scale: Tensor | None = None,
    input_scale: Tensor | None = None,
) -> None:
    setattr(layer, f"{name}_weight", nn.Parameter(weight, requires_grad=False))
    setattr(layer, f"{name}_scale", scale)
    setattr(layer, f"{name}_input_scale", input_scale)
