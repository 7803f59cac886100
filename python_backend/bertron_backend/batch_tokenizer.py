"""Texts to token ids: every request of a call in as few ``tokenizers`` calls as possible."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from bertron_backend.errors import InvalidInputError
from bertron_backend.pretokenized import TokenLookup

TRUNCATE_MODES = ("right", "left", "error")

IntArray = npt.NDArray[np.int32]


@dataclasses.dataclass(frozen=True)
class TextRequest:
    """One request's texts.

    Attributes:
        texts: B texts.
        pairs: The second half of each sentence pair, B texts, or None.
        truncate: What happens to a text that is too long: one of TRUNCATE_MODES.
        is_pretokenized: Each text is a JSON array of tokens of the vocabulary.
        wants_tokens: The token strings and their places are asked for; they cost time.
    """

    texts: Sequence[str]
    pairs: Sequence[str] | None = None
    truncate: str = "right"
    is_pretokenized: bool = False
    wants_tokens: bool = False


@dataclasses.dataclass(frozen=True)
class TokenBatch:
    """One request's tokens, padded to its own longest text.

    Attributes:
        input_ids: [B, S] int32.
        attention_mask: [B, S] int32, 0 where it is padding.
        token_type_ids: [B, S] int32, 1 in the second half of a pair where the tokenizer says so.
        token_count: [B, 1] int32, tokens of each text, special ones included, after truncation.
        truncated: [B, 1] bool.
        tokens: [B, S] object, the vocabulary's string of each token in UTF-8, b"" where it is
            padding; None when nobody asked.
        offsets: [B, S, 2] int32, the characters of its own text where the token starts and ends; in
            a text that came as tokens, 0 and the token's length. 0, 0 for the special tokens that
            the tokenizer adds and for padding. None when nobody asked.
    """

    input_ids: IntArray
    attention_mask: IntArray
    token_type_ids: IntArray
    token_count: IntArray
    truncated: npt.NDArray[np.bool_]
    tokens: npt.NDArray[np.object_] | None = None
    offsets: IntArray | None = None


class BatchTokenizer:
    """A Hugging Face tokenizer with the server's limits.

    Args:
        path: ``tokenizer.json``.
        max_tokens_per_text: Longest text, special tokens included.
        max_characters_per_text: A longer text is refused before it costs time.
    """

    def __init__(
        self, path: Path, *, max_tokens_per_text: int, max_characters_per_text: int
    ) -> None:
        self._tokenizer = Tokenizer.from_file(str(path))
        # tokenizer.json often carries the padding and truncation of somebody's training run.
        self._tokenizer.no_padding()
        self._lookup = TokenLookup(self._tokenizer)
        self._max_tokens = max_tokens_per_text
        self._max_characters = max_characters_per_text

    def encode(self, requests: Sequence[TextRequest]) -> list[TokenBatch | InvalidInputError]:
        """Tokenise all requests; each gets its tokens, or the error that is its own.

        Returns:
            One entry a request, in order.
        """
        answers: list[TokenBatch | InvalidInputError | None] = []
        inputs: list[list[Any]] = []
        together: dict[tuple[str, bool, bool], list[int]] = {}
        for index, request in enumerate(requests):
            try:
                inputs.append(self._inputs(request))
            except InvalidInputError as error:
                inputs.append([])
                answers.append(error)
            else:
                answers.append(None)
                way = (request.truncate, request.is_pretokenized, request.wants_tokens)
                together.setdefault(way, []).append(index)
        for (mode, is_pretokenized, wants_tokens), chosen in together.items():
            encode = self._encoder(mode, is_pretokenized, wants_tokens)
            encodings = iter(encode([text for index in chosen for text in inputs[index]]))
            for index in chosen:
                own = [next(encodings) for _ in inputs[index]]
                answers[index] = self._batch(own, mode, wants_tokens)
        return cast("list[TokenBatch | InvalidInputError]", answers)

    def _inputs(self, request: TextRequest) -> list[Any]:
        """What an encoder takes: each text, or each text and its pair."""
        self._check(request)
        texts = self._read("text", request.texts, request.is_pretokenized)
        if request.pairs is None:
            return texts
        pairs = self._read("text pair", request.pairs, request.is_pretokenized)
        return list(zip(texts, pairs, strict=True))

    def _check(self, request: TextRequest) -> None:
        if request.truncate not in TRUNCATE_MODES:
            raise InvalidInputError(
                f"truncate is {request.truncate!r}, not one of {', '.join(TRUNCATE_MODES)}"
            )
        if not request.texts:
            raise InvalidInputError("the request has 0 texts, at least 1 is needed")
        if request.pairs is not None and len(request.pairs) != len(request.texts):
            raise InvalidInputError(
                f"TEXT_PAIR has {len(request.pairs)} texts, TEXT has {len(request.texts)}; "
                "each text needs its own pair"
            )

    def _read(self, what: str, texts: Sequence[str], is_pretokenized: bool) -> list[Any]:
        for index, text in enumerate(texts):
            if len(text) > self._max_characters:
                raise InvalidInputError(
                    f"{what} {index} has {len(text)} characters, the server takes at most "
                    f"{self._max_characters}; split it into passages"
                )
        if is_pretokenized:
            return [self._lookup.read(f"{what} {index}", text) for index, text in enumerate(texts)]
        return list(texts)

    def _encoder(
        self, mode: str, is_pretokenized: bool, wants_tokens: bool
    ) -> Callable[[list[Any]], Sequence[Any]]:
        tokenizer = self._lookup.frame if is_pretokenized else self._tokenizer
        if mode == "error":
            tokenizer.no_truncation()
        else:
            tokenizer.enable_truncation(self._max_tokens, strategy="longest_first", direction=mode)
        if is_pretokenized:
            return self._lookup.encode
        # The fast one leaves out the token strings and the offsets.
        return tokenizer.encode_batch if wants_tokens else tokenizer.encode_batch_fast

    def _batch(
        self, encodings: Sequence[Any], mode: str, wants_tokens: bool
    ) -> TokenBatch | InvalidInputError:
        counts = np.array([len(encoding) for encoding in encodings], dtype=np.int32)
        longest = int(counts.max())
        if mode == "error" and longest > self._max_tokens:
            index = int(np.argmax(counts > self._max_tokens))
            return InvalidInputError(
                f"text {index} has {counts[index]} tokens, the model takes at most "
                f'{self._max_tokens}; shorten it or pass truncate="right"'
            )
        shape = (len(encodings), longest)
        input_ids = np.zeros(shape, dtype=np.int32)  # what stands in the padding is never read
        token_type_ids = np.zeros(shape, dtype=np.int32)
        for row, encoding in enumerate(encodings):
            input_ids[row, : counts[row]] = encoding.ids
            token_type_ids[row, : counts[row]] = encoding.type_ids
        batch = TokenBatch(
            input_ids=input_ids,
            attention_mask=(np.arange(longest) < counts[:, None]).astype(np.int32),
            token_type_ids=token_type_ids,
            token_count=counts[:, None],
            truncated=np.array([[bool(encoding.overflowing)] for encoding in encodings]),
        )
        return _with_tokens(batch, encodings) if wants_tokens else batch


def _with_tokens(batch: TokenBatch, encodings: Sequence[Any]) -> TokenBatch:
    tokens = np.full(batch.input_ids.shape, b"", dtype=np.object_)
    offsets = np.zeros((*batch.input_ids.shape, 2), dtype=np.int32)
    for row, encoding in enumerate(encodings):
        if len(encoding):
            tokens[row, : len(encoding)] = [token.encode() for token in encoding.tokens]
            offsets[row, : len(encoding)] = encoding.offsets
    return dataclasses.replace(batch, tokens=tokens, offsets=offsets)
