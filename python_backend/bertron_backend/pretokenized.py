"""Texts that come as tokens: each is looked up in the vocabulary as it stands."""

from __future__ import annotations

import dataclasses
import json

from tokenizers import Tokenizer

from bertron_backend.errors import InvalidInputError, quoted

# Byte-level BPE and Unigram do not say what their unknown token is: these are its usual names.
_UNKNOWN_NAMES = ("[UNK]", "<unk>")


@dataclasses.dataclass(frozen=True)
class TokenList:
    """One text's tokens, without special ones.

    Attributes:
        ids: Of each token.
        lengths: Characters of each token as it was sent.
    """

    ids: list[int]
    lengths: list[int]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def places(self) -> list[tuple[int, int]]:
        """Where each token starts and ends: in itself."""
        return [(0, length) for length in self.lengths]


class TokenLookup:
    """The vocabulary of a Hugging Face tokenizer, without its normaliser, pre-tokeniser and model.

    Args:
        tokenizer: Whose vocabulary it is.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
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

    def _id(self, name: str, index: int, token: str) -> int:
        try:
            found = self._tokenizer.token_to_id(token)
        except UnicodeEncodeError:
            raise InvalidInputError(
                f"{name}: token {index}, {quoted(token)}, has a lone surrogate, which is no "
                "character"
            ) from None
        if found is None:
            found = self._unknown_id
        if found is None:
            raise InvalidInputError(
                f"{name}: token {index}, {quoted(token)}, is not in the vocabulary, which "
                "has no unknown token"
            )
        return int(found)


def _strings(name: str, text: str) -> list[str]:
    expected = f"{name} is not a JSON array of strings, as is_pretokenized asks for"
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):  # RecursionError: a hundred thousand brackets
        raise InvalidInputError(f"{expected}: it is {quoted(text)}") from None
    if not isinstance(values, list):
        raise InvalidInputError(f"{expected}: it is {quoted(text)}")
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise InvalidInputError(f"{expected}: element {index} is {quoted(value)}")
    return values
