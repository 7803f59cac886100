"""Int8 products where the embeddings allow it, chosen by measurement on real texts.

A weight gets one scale an output channel; activations get scale and offset a token, when they come.
Before that a scale an input channel moves the spread of outlier channels from the activations into
the weights, whose errors :mod:`bertron_torchscript.rounding` balances. What still costs too much
stays bfloat16, as everything around the products does.

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
from bertron_torchscript.rounding import Rounding

# How far outliers move from activations into weights; None leaves them. SmoothQuant's alpha.
MIGRATIONS = (None, 0.5, 0.6, 0.7, 0.8)
FIRST_MIGRATION = 0.5  # by which the texts are found that decide between them
HARDEST_TEXTS = 96  # so many; all of them take four times as long and chose no better
# Of the error that the export's gate allows; the rest is for texts that were not measured. With 0.7
# one of 1,500 single words fell below MiniLM's gate.
BUDGET = 0.6

# Tokens of a stretch, and how many such stretches stand beside the calibration texts. The shortest
# texts lose most: few tokens average out little.
STRETCHES = ((1, 256), (2, 128), (8, 64))
# The same of texts of random tokens, which the rounding gets to see besides: fitted to twenty
# texts and their stretches alone, it kept the gate on those and broke it on others.
RANDOM_TEXTS = ((1, 2048), (4, 1024), (16, 256))
_TOKENS_A_FORWARD = 2048  # of those

Packed = tuple[Tensor, Tensor, Tensor, int]  # the arguments of forward_packed


@dataclasses.dataclass(frozen=True)
class InputStatistics:
    """Of the inputs x [K] of one product, over some texts."""

    gram: Tensor  # [K, K], the sum of x xᵀ
    largest: Tensor  # [K], of the absolute values


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
        ExportError: Without the CPU library no int8 is multiplied, and nothing could be measured;
            or the float32 model gives NaN or infinity.
    """
    import bertron_kernels

    if bertron_kernels.implementation("cpu") == "eager":
        raise ExportError(
            "int8 is chosen by measurement, which needs the CPU library: build it with"
            " python -m bertron_kernels.build, and leave BERTRON_CPU_KERNELS unset"
        )
    trial = _Trial(model, texts)
    if not torch.isfinite(trial.expected).all():
        raise ExportError("the float32 model gives embeddings that are not finite")
    wide = [weight for weight, _scale, _input_scale in trial.stored]
    progress(f"quantising {len(wide)} products to int8")
    narrow = _narrowed(trial, _statistics(model, texts))

    progress("measuring what each of them costs")
    as_bf16 = [(weight.to(torch.bfloat16), None, None) for weight in wide]
    trial.set_all(as_bf16)
    base = trial.error()
    allowed = max((1 - required_cosine) * BUDGET, base)
    cost = []
    for i, weight in enumerate(wide):
        trial.set(i, narrow[i])
        cost.append((trial.error() - base) / weight.numel())
        trial.set(i, as_bf16[i])
    chosen = set()
    for i in sorted(range(len(wide)), key=cost.__getitem__):
        trial.set(i, narrow[i])
        if trial.error() <= allowed:
            chosen.add(i)
        else:
            trial.set(i, as_bf16[i])
    share = sum(wide[i].numel() for i in chosen) / max(sum(w.numel() for w in wide), 1)
    progress(f"{len(chosen)} of {len(wide)} products, {share:.0%} of the arithmetic, are int8")
    trial.unpack()


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


_Stored = tuple[Tensor, Tensor | None, Tensor | None]  # weight, scale, input scale


class _Trial:
    """The model with other weights for its products, measured on the calibration texts.

    Attributes:
        stored: What each product has, not packed.
        expected: [B, E], the embeddings with the weights that the model came with.
    """

    def __init__(self, model: Bert, texts: Packed) -> None:
        self._model = model
        self._texts = texts
        self._products = [(layer, name) for layer in model.layers for name in LINEARS]
        self.stored: list[_Stored] = [
            (getattr(layer, f"{name}_weight").detach(), None, None)
            for layer, name in self._products
        ]
        self.set_all(self.stored)
        self.expected = model.forward_packed(*texts)

    def set(self, i: int, stored: _Stored) -> None:
        """Give product ``i`` another weight."""
        weight, scale, input_scale = self.stored[i] = stored
        packed = torch.ops.bertron.pack_weight(weight, scale, input_scale)
        self._put(i, packed, scale, input_scale)

    def set_all(self, stored: Sequence[_Stored]) -> None:
        """Give every product another weight."""
        for i, own in enumerate(stored):
            self.set(i, own)

    def unpack(self) -> None:
        """Leave the weights in the model as they are saved."""
        for i, own in enumerate(self.stored):
            self._put(i, *own)

    def error(self, rows: Sequence[int] | None = None) -> float:
        """The worst text's, of all or of ``rows``: 1 - cosine with the float32 model."""
        return float(self.errors(rows).max())

    def errors(self, rows: Sequence[int] | None = None) -> Tensor:
        """[B], each text's."""
        texts, expected = self._texts, self.expected
        if rows is not None:
            texts, expected = _some(texts, rows), expected[list(rows)]
        found = self._model.forward_packed(*texts)
        return 1 - F.cosine_similarity(found.double(), expected.double(), dim=1)

    def _put(
        self, i: int, weight: Tensor, scale: Tensor | None, input_scale: Tensor | None
    ) -> None:
        layer, name = self._products[i]
        setattr(layer, f"{name}_weight", nn.Parameter(weight, requires_grad=False))
        setattr(layer, f"{name}_scale", scale)
        setattr(layer, f"{name}_input_scale", input_scale)


def _narrowed(trial: _Trial, statistics: Sequence[InputStatistics]) -> list[_Stored]:
    """Int8 for each product, by the migration that loses least on the texts that lose most."""
    wide = list(trial.stored)
    candidates = [
        _candidates(weight, inputs)
        for (weight, _scale, _input_scale), inputs in zip(wide, statistics, strict=True)
    ]
    trial.set_all([own[FIRST_MIGRATION] for own in candidates])
    hardest = trial.errors().argsort(descending=True)[:HARDEST_TEXTS].tolist()
    trial.set_all(wide)
    narrow = []
    for i, own in enumerate(candidates):
        losses = {}
        for alpha, stored in own.items():
            trial.set(i, stored)
            losses[alpha] = trial.error(hardest)
        narrow.append(own[min(losses, key=losses.__getitem__)])
        trial.set(i, wide[i])
    return narrow


def _candidates(weight: Tensor, inputs: InputStatistics) -> dict[float | None, _Stored]:
    """``weight`` [N, K] rounded after each of MIGRATIONS."""
    rounding = Rounding(inputs.gram)
    activation = inputs.largest.clamp(min=1e-5)
    channel = weight.abs().amax(0).clamp(min=1e-5)
    return {
        alpha: rounding.quantize(
            weight, None if alpha is None else channel ** (1 - alpha) / activation**alpha
        )
        for alpha in MIGRATIONS
    }


def _random_texts(model: Bert, like: Packed) -> Iterator[Packed]:
    """RANDOM_TEXTS between the special tokens of the first text, a forward's worth at a time."""
    ids, _types, cu_seqlens, _max_seqlen = like
    first, last = ids[0], ids[cu_seqlens[1] - 1]
    vocab_size = len(model.word_embeddings)
    longest = len(model.position_embeddings) - model.position_offset
    generator = torch.Generator().manual_seed(0)
    for tokens, count in RANDOM_TEXTS:
        if tokens + 2 > longest:
            continue
        rows = torch.randint(vocab_size, (count, tokens + 2), generator=generator, dtype=ids.dtype)
        rows[:, 0], rows[:, -1] = first, last
        for part in torch.split(rows, max(1, _TOKENS_A_FORWARD // (tokens + 2))):
            ends = torch.arange(len(part) + 1, dtype=torch.int32) * part.shape[1]
            flat = part.flatten()
            yield flat, torch.zeros_like(flat), ends, part.shape[1]


def _some(texts: Packed, rows: Sequence[int]) -> Packed:
    ids, types, cu_seqlens, _max_seqlen = texts
    bounds = cu_seqlens.tolist()
    places = [torch.arange(bounds[row], bounds[row + 1]) for row in rows]
    lengths = torch.tensor([0, *map(len, places)])
    kept = torch.cat(places)
    return ids[kept], types[kept], lengths.cumsum(0).to(torch.int32), int(lengths.max())


class _Inputs(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sums up what each matrix product reads, in the order of the products."""

    def __init__(self, products: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.statistics: list[InputStatistics | None] = [None] * products
        self._next = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func.overloadpacket in _PRODUCTS:
            x = args[0]
            gram, largest = x.T @ x, x.abs().amax(0)
            so_far = self.statistics[self._next]
            if so_far is not None:
                gram, largest = so_far.gram + gram, torch.maximum(so_far.largest, largest)
            self.statistics[self._next] = InputStatistics(gram, largest)
            self._next = (self._next + 1) % len(self.statistics)
        return func(*args, **(kwargs or {}))


_PRODUCTS = (
    torch.ops.bertron.linear,
    torch.ops.bertron.linear_gelu,
    torch.ops.bertron.linear_add_layer_norm,
)


def _statistics(model: Bert, texts: Packed) -> list[InputStatistics]:
    """Of each product's inputs, in the order of the products, over texts and random ones."""
    with _Inputs(len(model.layers) * len(LINEARS)) as inputs:
        model.forward_packed(*texts)
        for batch in _random_texts(model, texts):
            model.forward_packed(*batch)
    return [found for found in inputs.statistics if found is not None]
