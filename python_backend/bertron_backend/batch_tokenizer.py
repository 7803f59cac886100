"""Texts to token ids: every request of a call in as few ``tokenizers`` calls as possible."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from bertron_backend.errors import InvalidInputError

TRUNCATE_MODES = ("right", "left", "error")

IntArray = npt.NDArray[np.int32]


@dataclasses.dataclass(frozen=True)
class TextRequest:
    """One request's texts.

    Attributes:
        texts: B texts.
        pairs: The second half of each sentence pair, B texts, or None.
        truncate: What happens to a text that is too long: one of TRUNCATE_MODES.
    """

    texts: Sequence[str]
    pairs: Sequence[str] | None = None
    truncate: str = "right"


@dataclasses.dataclass(frozen=True)
class TokenBatch:
    """One request's tokens, padded to its own longest text.

    Attributes:
        input_ids: [B, S] int32.
        attention_mask: [B, S] int32, 0 where it is padding.
        token_type_ids: [B, S] int32, 1 in the second half of a pair where the tokenizer says so.
        token_count: [B, 1] int32, tokens of each text, special ones included, after truncation.
        truncated: [B, 1] bool.
    """

    input_ids: IntArray
    attention_mask: IntArray
    token_type_ids: IntArray
    token_count: IntArray
    truncated: npt.NDArray[np.bool_]


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
        self._max_tokens = max_tokens_per_text
        self._max_characters = max_characters_per_text

    def encode(self, requests: Sequence[TextRequest]) -> list[TokenBatch | InvalidInputError]:
        """Tokenise all requests; each gets its tokens, or the error that is its own.

        Returns:
            One entry a request, in order.
        """
        answers: list[TokenBatch | InvalidInputError | None] = [
            self._refusal(request) for request in requests
        ]
        for mode in TRUNCATE_MODES:
            chosen = [
                index
                for index, request in enumerate(requests)
                if answers[index] is None and request.truncate == mode
            ]
            if not chosen:
                continue
            encodings = iter(self._encode(mode, [requests[index] for index in chosen]))
            for index in chosen:
                own = [next(encodings) for _ in requests[index].texts]
                answers[index] = self._batch(mode, own)
        return cast("list[TokenBatch | InvalidInputError]", answers)

    def _refusal(self, request: TextRequest) -> InvalidInputError | None:
        """What is wrong with the request before a single text is tokenised."""
        if request.truncate not in TRUNCATE_MODES:
            return InvalidInputError(
                f"truncate is {request.truncate!r}, not one of {', '.join(TRUNCATE_MODES)}"
            )
        if not request.texts:
            return InvalidInputError("the request has 0 texts, at least 1 is needed")
        if request.pairs is not None and len(request.pairs) != len(request.texts):
            return InvalidInputError(
                f"TEXT_PAIR has {len(request.pairs)} texts, TEXT has {len(request.texts)}; "
                "each text needs its own pair"
            )
        for what, texts in (("text", request.texts), ("text pair", request.pairs or ())):
            for index, text in enumerate(texts):
                if len(text) > self._max_characters:
                    return InvalidInputError(
                        f"{what} {index} has {len(text)} characters, the server takes at most "
                        f"{self._max_characters}; split it into passages"
                    )
        return None

    def _encode(self, mode: str, requests: Sequence[TextRequest]) -> list[Any]:
        if mode == "error":
            self._tokenizer.no_truncation()
        else:
            self._tokenizer.enable_truncation(
                self._max_tokens, strategy="longest_first", direction=mode
            )
        inputs: list[str | tuple[str, str]] = []
        for request in requests:
            if request.pairs is None:
                inputs.extend(request.texts)
            else:
                inputs.extend(zip(request.texts, request.pairs, strict=True))
        return list(self._tokenizer.encode_batch_fast(inputs))

    def _batch(self, mode: str, encodings: Sequence[Any]) -> TokenBatch | InvalidInputError:
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
        return TokenBatch(
            input_ids=input_ids,
            attention_mask=(np.arange(longest) < counts[:, None]).astype(np.int32),
            token_type_ids=token_type_ids,
            token_count=counts[:, None],
            truncated=np.array([[bool(encoding.overflowing)] for encoding in encodings]),
        )
