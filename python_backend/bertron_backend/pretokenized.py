"""Texts that come as tokens: each is looked up in the vocabulary as it stands."""

from __future__ import annotations

import dataclasses
import json
import reprlib
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from bertron_backend.errors import InvalidInputError

# Byte-level BPE and Unigram do not say what their unknown token is: these are its usual names.
_UNKNOWN_NAMES = ("[UNK]", "<unk>")
_ANY_TOKEN = "x"  # noqa: S105 - no password
_SHORT = reprlib.Repr()  # of what a message quotes: 30 characters, nothing nested
_SHORT.maxlevel = 1


@dataclasses.dataclass(frozen=True)
class TokenList:
    """One text's tokens, without special ones.

    Attributes:
        ids: Of each token.
        lengths: Characters of each token as it was sent.
    """

    ids: list[int]
    lengths: list[int]


@dataclasses.dataclass(frozen=True)
class LookedUp:
    """What ``tokenizers`` would answer as an Encoding, as far as a batch needs it."""

    ids: list[int]
    type_ids: list[int]
    tokens: list[str]
    offsets: list[tuple[int, int]]
    overflowing: bool

    def __len__(self) -> int:
        return len(self.ids)


class TokenLookup:
    """A Hugging Face tokenizer without its normaliser, pre-tokeniser and model.

    Args:
        tokenizer: Whose vocabulary and special tokens these are.

    Attributes:
        frame: The tokenizer that sets the special tokens around a text, numbers the types and cuts
            what is too long. It sees as many copies of one token as the text has; so its only
            setting for the caller is the truncation.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.frame = Tokenizer(WordLevel({_ANY_TOKEN: 0}))
        self.frame.post_processor = tokenizer.post_processor
        self._tokenizer = tokenizer
        names = (getattr(tokenizer.model, "unk_token", None), *_UNKNOWN_NAMES)
        ids = (tokenizer.token_to_id(name) for name in names if name is not None)
        self._unknown_id = next((found for found in ids if found is not None), None)

    def read(self, name: str, text: str) -> TokenList:
        """The tokens of a JSON array of strings.

        Args:
            name: What the text is called in messages.
            text: The JSON.

        Raises:
            InvalidInputError: It is no such array, or a token is not in a vocabulary that has no
                unknown token.
        """
        tokens = _strings(name, text)
        return TokenList(
            [self._id(name, index, token) for index, token in enumerate(tokens)],
            [len(token) for token in tokens],
        )

    def encode(self, texts: Sequence[TokenList | tuple[TokenList, TokenList]]) -> list[LookedUp]:
        """The tokens of each text or pair with the special ones, cut as ``frame`` is set to."""
        counted: list[Any] = [
            tuple([_ANY_TOKEN] * len(half.ids) for half in text)
            if isinstance(text, tuple)
            else [_ANY_TOKEN] * len(text.ids)
            for text in texts
        ]
        framed = self.frame.encode_batch(counted, is_pretokenized=True)
        return [self._filled(text, frame) for text, frame in zip(texts, framed, strict=True)]

    def _filled(self, text: TokenList | tuple[TokenList, TokenList], frame: Any) -> LookedUp:
        halves = text if isinstance(text, tuple) else (text,)
        ids, tokens, offsets = frame.ids, frame.tokens, [(0, 0)] * len(frame)
        for position, (half, token) in enumerate(
            zip(frame.sequence_ids, frame.word_ids, strict=True)
        ):
            if half is not None:  # None: a special token, which is right already
                ids[position] = halves[half].ids[token]
                tokens[position] = self._tokenizer.id_to_token(ids[position])
                offsets[position] = (0, halves[half].lengths[token])
        return LookedUp(
            ids=ids,
            type_ids=frame.type_ids,
            tokens=tokens,
            offsets=offsets,
            overflowing=bool(frame.overflowing),
        )

    def _id(self, name: str, index: int, token: str) -> int:
        try:
            found = self._tokenizer.token_to_id(token)
        except UnicodeEncodeError:
            raise InvalidInputError(
                f"{name}: token {index}, {_SHORT.repr(token)}, has a lone surrogate, which is no "
                "character"
            ) from None
        if found is None:
            found = self._unknown_id
        if found is None:
            raise InvalidInputError(
                f"{name}: token {index}, {_SHORT.repr(token)}, is not in the vocabulary, which "
                "has no unknown token"
            )
        return int(found)


def _strings(name: str, text: str) -> list[str]:
    expected = f"{name} is not a JSON array of strings, as is_pretokenized asks for"
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):  # RecursionError: a hundred thousand brackets
        raise InvalidInputError(f"{expected}: it is {_SHORT.repr(text)}") from None
    if not isinstance(values, list):
        raise InvalidInputError(f"{expected}: it is {_SHORT.repr(text)}")
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise InvalidInputError(f"{expected}: element {index} is {_SHORT.repr(value)}")
    return values
