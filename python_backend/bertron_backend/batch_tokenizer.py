"""Texts to token ids: every request of a call in as few ``tokenizers`` calls as possible."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from bertron_backend.errors import InvalidInputError, quoted
from bertron_backend.framing import Frame, Half, Place
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

    @property
    def halves(self) -> dict[str, Sequence[str]]:
        """The texts, and the pairs where there are any, by what messages call one of them."""
        given = {"text": self.texts, "text pair": self.pairs}
        return {what: texts for what, texts in given.items() if texts is not None}


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
        max_characters_per_request: So are texts and pairs that have more of them together.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_tokens_per_text: int,
        max_characters_per_text: int,
        max_characters_per_request: int,
    ) -> None:
        self._tokenizer = Tokenizer.from_file(str(path))
        self._text_frame, self._pair_frame = (
            Frame(self._tokenizer, halves=halves, max_tokens=max_tokens_per_text)
            for halves in (1, 2)
        )
        self._tokenizer.post_processor = None  # the frames do its work
        # tokenizer.json often carries the padding and truncation of somebody's training run.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._lookup = TokenLookup(self._tokenizer)
        self._max_tokens = max_tokens_per_text
        self._max_characters = max_characters_per_text
        self._max_characters_together = max_characters_per_request

    def encode(self, requests: Sequence[TextRequest]) -> list[TokenBatch | InvalidInputError]:
        """Tokenise all requests; each gets its tokens, or the error that is its own.

        Returns:
            One entry a request, in order.
        """
        errors: dict[int, InvalidInputError] = {}
        tokens: dict[int, list[Half]] = {}  # of each text, then of each pair
        together: dict[bool, list[int]] = {}
        for index, request in enumerate(requests):
            try:
                self._check(request)
                if request.is_pretokenized:
                    tokens[index] = self._look_up(request)
                else:
                    together.setdefault(request.wants_tokens, []).append(index)
            except InvalidInputError as error:
                errors[index] = error
        for wants_tokens, chosen in together.items():
            split = self._split([requests[index] for index in chosen], wants_tokens)
            tokens.update(zip(chosen, split, strict=True))
        return [
            errors[index] if index in errors else self._batch(request, tokens[index])
            for index, request in enumerate(requests)
        ]

    def _check(self, request: TextRequest) -> None:
        if request.truncate not in TRUNCATE_MODES:
            raise InvalidInputError(
                f"truncate is {quoted(request.truncate)}, not one of {', '.join(TRUNCATE_MODES)}"
            )
        if not request.texts:
            raise InvalidInputError("the request has 0 texts, at least 1 is needed")
        if request.pairs is not None and len(request.pairs) != len(request.texts):
            raise InvalidInputError(
                f"TEXT_PAIR has {len(request.pairs)} texts, TEXT has {len(request.texts)}; "
                "each text needs its own pair"
            )
        self._check_characters(request)

    def _check_characters(self, request: TextRequest) -> None:
        together = 0
        for what, texts in request.halves.items():
            for index, text in enumerate(texts):
                together += len(text)
                if len(text) > self._max_characters:
                    raise InvalidInputError(
                        f"{what} {index} has {len(text)} characters, the server takes at most "
                        f"{self._max_characters}; split it into passages"
                    )
        if together > self._max_characters_together:
            raise InvalidInputError(
                f"the request has {together} characters, the server takes at most "
                f"{self._max_characters_together} in all its texts together; send fewer texts a "
                "request"
            )

    def _look_up(self, request: TextRequest) -> list[Half]:
        return [
            self._lookup.read(f"{what} {index}", text)
            for what, texts in request.halves.items()
            for index, text in enumerate(texts)
        ]

    def _split(self, requests: Sequence[TextRequest], wants_tokens: bool) -> Iterator[list[Half]]:
        """The tokens of each text and each pair of each request, as ``tokenizers`` has them."""
        own = [list(itertools.chain(*request.halves.values())) for request in requests]
        # The fast one leaves out the offsets.
        encode = self._tokenizer.encode_batch if wants_tokens else self._tokenizer.encode_batch_fast
        encodings = iter(encode(list(itertools.chain(*own)), add_special_tokens=False))
        return (list(itertools.islice(encodings, len(texts))) for texts in own)

    def _batch(
        self, request: TextRequest, tokens: Sequence[Half]
    ) -> TokenBatch | InvalidInputError:
        frame = self._text_frame if request.pairs is None else self._pair_frame
        count = len(request.texts)
        texts = [tokens[row::count] for row in range(count)]  # each with its pair
        whole = np.array([frame.count(halves) for halves in texts])
        truncated = whole > self._max_tokens
        if request.truncate == "error" and truncated.any():
            index = int(np.argmax(truncated))
            return InvalidInputError(
                f"text {index} has {whole[index]} tokens, the model takes at most "
                f'{self._max_tokens}; shorten it or pass truncate="right"'
            )
        ids: list[int] = []
        type_ids: list[int] = []
        places: list[Place] = []
        counts = np.zeros((count, 1), dtype=np.int32)
        side = "left" if request.truncate == "left" else "right"
        for row, halves in enumerate(texts):
            own_ids, own_type_ids = frame.tokens(halves, side)
            ids += own_ids
            type_ids += own_type_ids
            counts[row] = len(own_ids)
            if request.wants_tokens:
                places += frame.places(halves, side)
        is_token = np.arange(counts.max()) < counts  # [B, S]
        batch = TokenBatch(
            input_ids=_padded(ids, is_token),  # what stands in the padding is never read
            attention_mask=is_token.astype(np.int32),
            token_type_ids=_padded(type_ids, is_token),
            token_count=counts,
            truncated=truncated[:, None],
        )
        if not request.wants_tokens:
            return batch
        return dataclasses.replace(
            batch, tokens=self._strings(ids, is_token), offsets=_padded_places(places, is_token)
        )

    def _strings(self, ids: list[int], is_token: npt.NDArray[np.bool_]) -> npt.NDArray[np.object_]:
        """What the vocabulary has for each id.

        The library's own string of a token may be another: a ``<mask>`` with the blank before it.
        """
        different, which = np.unique(np.array(ids, dtype=np.int32), return_inverse=True)
        names = [(self._tokenizer.id_to_token(id_) or "").encode() for id_ in different.tolist()]
        tokens = np.full(is_token.shape, b"", dtype=np.object_)
        tokens[is_token] = np.array(names, dtype=np.object_)[which]
        return tokens


def _padded(values: list[int], is_token: npt.NDArray[np.bool_]) -> IntArray:
    """Values [T] of the tokens, row by row, to [B, S], with 0 in the padding."""
    array = np.zeros(is_token.shape, dtype=np.int32)
    array[is_token] = values
    return array


def _padded_places(places: list[Place], is_token: npt.NDArray[np.bool_]) -> IntArray:
    """Values [T, 2] to [B, S, 2]."""
    offsets = np.zeros((*is_token.shape, 2), dtype=np.int32)
    offsets[is_token] = np.array(places, dtype=np.int32).reshape(-1, 2)
    return offsets
