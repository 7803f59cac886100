"""The texts of one call, checked and encoded, and what is to be done with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Iterable, List, Optional, Sequence

import numpy as np

from ._arguments import check_type
from ._exceptions import InvalidInputError
from ._inputs import collect_texts, encode_texts, encode_tokens
from ._planning import check_lengths

TRUNCATE_CHOICES = ("right", "left", "error")


@dataclass(frozen=True)
class TextOptions:
    """What holds for every text of a call; see ``Client.embed``."""

    truncate: str = "right"
    is_pretokenized: bool = False
    normalize: Optional[bool] = None
    dimensions: Optional[int] = None

    def __post_init__(self) -> None:
        if self.truncate not in TRUNCATE_CHOICES:
            raise InvalidInputError(
                f"truncate is {self.truncate!r}, one of {', '.join(TRUNCATE_CHOICES)} is wanted"
            )
        check_type("is_pretokenized", self.is_pretokenized, "True or False", bool, np.bool_)
        kinds = bool, np.bool_, type(None)
        check_type("normalize", self.normalize, "True, False or None", *kinds)


class Texts:
    """Texts as the caller gave them, and as UTF-8.

    Args:
        texts: Any ordered collection.
        text_pairs: As many, or None.
        options: Whether they are lists of tokens.
        first: Place of the first text in the caller's list.

    Raises:
        TypeError: No collection of texts.
        InvalidInputError: An element is no text, or the two are not of one length.
    """

    def __init__(
        self,
        texts: Iterable[Any],
        text_pairs: Optional[Iterable[Any]],
        options: TextOptions,
        first: int = 0,
    ) -> None:
        given = collect_texts(texts, "texts")
        given_pairs = None if text_pairs is None else collect_texts(text_pairs, "text_pairs")
        if given_pairs is not None and len(given_pairs) != len(given):
            raise InvalidInputError(
                f"{len(given_pairs)} text_pairs came with {len(given)} texts, one each is wanted"
            )
        encode = encode_tokens if options.is_pretokenized else encode_texts
        self._given: Sequence[Any] = given
        self._given_pairs: Sequence[Any] = given_pairs or ()
        self._options = options
        self._place = first
        self.first: List[bytes] = encode(given, "texts", first)
        self.second: Optional[List[bytes]] = (
            None if given_pairs is None else encode(given_pairs, "text_pairs", first)
        )

    def __len__(self) -> int:
        return len(self.first)

    def check(self, max_characters: Optional[int]) -> None:
        """Refuse a text that the server would refuse for its length in characters.

        Raises:
            InvalidInputError: One is too long.
        """
        if not self._options.is_pretokenized:  # the server counts its tokens
            check_lengths(self._given, max_characters, "texts", self._place)
            check_lengths(self._given_pairs, max_characters, "text_pairs", self._place)
