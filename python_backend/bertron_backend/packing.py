"""Requests of different length to one packed batch, and its rows back to the requests."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from bertron_backend.errors import InvalidInputError

IntArray = npt.NDArray[np.int32]


@dataclasses.dataclass(frozen=True)
class TokenRequest:
    """One request's arrays as they came.

    Attributes:
        input_ids: [b, s] int32, as the next two.
        truncated: [b, 1] bool, what the tokenizer says of each text; None where it was passed by.
    """

    input_ids: IntArray
    attention_mask: IntArray
    token_type_ids: IntArray
    truncated: npt.NDArray[np.bool_] | None = None


@dataclasses.dataclass(frozen=True)
class PackedRequest:
    """Texts without padding: one request's, or those of several.

    Attributes:
        input_ids: [t] int32, the texts one after the other.
        token_type_ids: [t] int32.
        lengths: [b] tokens of each text, each 1 or more.
    """

    input_ids: IntArray
    token_type_ids: IntArray
    lengths: list[int]


@dataclasses.dataclass(frozen=True)
class PackedBatch:
    """What one forward takes.

    Attributes:
        input_ids: [T] int32.
        token_type_ids: [T] int32.
        cu_seqlens: [B + 1] int32, where each text begins; the last is T.
        max_seqlen: Longest text in tokens.
    """

    input_ids: IntArray
    token_type_ids: IntArray
    cu_seqlens: IntArray
    max_seqlen: int


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What the model's tables hold: ids beyond them would crash a batch, or a whole GPU context."""

    vocab_size: int
    type_vocab_size: int
    max_tokens_per_text: int


def pack_request(request: TokenRequest, vocabulary: Vocabulary) -> PackedRequest:
    """Drop one request's padding, after checking that the model can take the rest.

    Raises:
        InvalidInputError: Shapes disagree, a text is empty or too long, or an id is out of range.
    """
    ids, mask, types = request.input_ids, request.attention_mask, request.token_type_ids
    if ids.ndim != 2 or ids.shape != mask.shape or ids.shape != types.shape:
        raise InvalidInputError(
            f"input_ids is {list(ids.shape)}, attention_mask {list(mask.shape)} and token_type_ids "
            f"{list(types.shape)}; all must be the same [texts, tokens]"
        )
    packed = _without_padding(ids, mask, types)
    lengths = packed.lengths
    if not lengths:
        raise InvalidInputError("the request has 0 texts, at least 1 is needed")
    if min(lengths) == 0:
        raise InvalidInputError(
            f"text {lengths.index(0)} has 0 tokens: its attention_mask is all 0"
        )
    longest = max(lengths)
    if longest > vocabulary.max_tokens_per_text:
        raise InvalidInputError(
            f"text {lengths.index(longest)} has {longest} tokens, the model takes at most "
            f"{vocabulary.max_tokens_per_text}"
        )
    _check_range("input_ids", packed.input_ids, vocabulary.vocab_size)
    if vocabulary.type_vocab_size:
        # A model with a single token type (RoBERTa) ignores a tokenizer that numbers pairs.
        if vocabulary.type_vocab_size == 1:
            packed = dataclasses.replace(
                packed, token_type_ids=np.zeros_like(packed.token_type_ids)
            )
        _check_range("token_type_ids", packed.token_type_ids, vocabulary.type_vocab_size)
    return packed


def _without_padding(ids: IntArray, mask: IntArray, types: IntArray) -> PackedRequest:
    if np.count_nonzero(mask) == mask.size:  # as in every request of one text
        texts, tokens = ids.shape
        return PackedRequest(ids.ravel(), types.ravel(), [tokens] * texts)
    kept = mask != 0
    return PackedRequest(ids[kept], types[kept], np.count_nonzero(kept, axis=1).tolist())


def _check_range(name: str, values: IntArray, size: int) -> None:
    # One comparison for both ends: a negative id is a huge unsigned one.
    if values.view(np.uint32).max() >= size:
        wrong = values[values.view(np.uint32) >= size][0]
        raise InvalidInputError(f"{name} has {wrong}, the model knows 0 to {size - 1}")


def join(requests: Sequence[PackedRequest]) -> PackedRequest:
    """All texts of all requests, in order."""
    if len(requests) == 1:
        return requests[0]
    return PackedRequest(
        input_ids=np.concatenate([request.input_ids for request in requests]),
        token_type_ids=np.concatenate([request.token_type_ids for request in requests]),
        lengths=[length for request in requests for length in request.lengths],
    )


def split(texts: PackedRequest, parts: int) -> Iterator[PackedBatch]:
    """Cut between texts into at most ``parts`` batches of nearly equally many tokens, in order."""
    if 1 in (parts, len(texts.lengths)):
        yield _batch(texts.input_ids, texts.token_type_ids, texts.lengths)
        return
    ends = np.cumsum(texts.lengths)  # [B]
    for first, last in itertools.pairwise(_bounds(ends, parts)):
        start, end = int(ends[first - 1]) if first else 0, int(ends[last - 1])
        ids, types = texts.input_ids[start:end], texts.token_type_ids[start:end]
        yield _batch(ids, types, texts.lengths[first:last])


def _batch(ids: IntArray, types: IntArray, lengths: list[int]) -> PackedBatch:
    starts = np.array([0, *itertools.accumulate(lengths)], dtype=np.int32)
    return PackedBatch(ids, types, starts, max(lengths))


def _bounds(ends: npt.NDArray[np.int64], parts: int) -> list[int]:
    # The text whose end is nearest to each equal share of the tokens closes a part.
    shares = ends[-1] * np.arange(1, parts) / parts
    above = np.searchsorted(ends, shares)
    below = np.maximum(above - 1, 0)
    nearest = np.where(ends[above] - shares <= shares - ends[below], above, below)
    bounds: list[int] = np.unique(np.concatenate([[0], nearest + 1, [len(ends)]])).tolist()
    return bounds
