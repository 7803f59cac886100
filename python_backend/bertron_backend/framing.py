"""The special tokens around a text or a pair, and how much of one that is too long is kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from tokenizers import Encoding, Tokenizer
from tokenizers.models import WordLevel

from bertron_backend.pretokenized import TokenList

_ANY_TOKEN = "x"  # noqa: S105 - no password

Half = Encoding | TokenList  # the tokens of a text or of its pair, without special ones
Place = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class _Piece:
    """A special token, or where the tokens of a half stand.

    Attributes:
        half: 0 the text, 1 its pair; None: a special token.
        token_id: Of the special token.
        type_id: Of the special token, or of each token of the half.
    """

    half: int | None
    token_id: int
    type_id: int


class Frame:
    """What a tokenizer's post-processor sets around the tokens of a text, or of a pair.

    It is read off one token a half: how many there are makes no difference to a post-processor.

    ``tokenizers`` itself is never asked to cut. It answers what it has cut off too, of a pair each
    part of the one half with each part of the other: 2 x 20,000 tokens cost 14 s and 3.7 GB.

    Args:
        tokenizer: With its post-processor.
        halves: 1 for texts, 2 for pairs.
        max_tokens: Longest text or pair, special tokens included.
    """

    def __init__(self, tokenizer: Tokenizer, *, halves: int, max_tokens: int) -> None:
        self._bare = Tokenizer(WordLevel({_ANY_TOKEN: 0}))
        self._bare.post_processor = tokenizer.post_processor
        token = [_ANY_TOKEN]
        sample = self._bare.encode(token, token if halves == 2 else None, is_pretokenized=True)
        self._pieces = [
            _Piece(*piece)
            for piece in zip(sample.sequence_ids, sample.ids, sample.type_ids, strict=True)
        ]
        self._special = sum(piece.half is None for piece in self._pieces)
        self._room = max(0, max_tokens - self._special)

    def count(self, halves: Sequence[Half]) -> int:
        """Tokens of a text or pair before anything is cut, special ones included."""
        return self._special + sum(map(len, halves))

    def tokens(self, halves: Sequence[Half], side: str) -> tuple[list[int], list[int]]:
        """The ids and the type ids of a text or pair, cut and with the special tokens.

        Args:
            halves: The text's tokens, or the text's and its pair's.
            side: Where each is cut if need be: "right", at its end, or "left".
        """
        own = [half.ids[part] for half, part in zip(halves, self._parts(halves, side), strict=True)]
        ids: list[int] = []
        type_ids: list[int] = []
        for piece in self._pieces:
            inner = [piece.token_id] if piece.half is None else own[piece.half]
            ids += inner
            type_ids += [piece.type_id] * len(inner)
        return ids, type_ids

    def places(self, halves: Sequence[Half], side: str) -> Iterable[Place]:
        """Where each of these tokens starts and ends in its text; a special one 0, 0.

        Args:
            halves: As in ``tokens``, which must come first: they are cut.
            side: As there.
        """
        parts = self._parts(halves, side)
        own = [self._own_places(*half, side) for half in zip(halves, parts, strict=True)]
        for piece in self._pieces:
            yield from [(0, 0)] if piece.half is None else own[piece.half]

    def _own_places(self, half: Half, part: slice, side: str) -> list[Place]:
        if isinstance(half, TokenList):
            return half.places[part]
        # The post-processor of a byte-level BPE takes the blank from a token's place, and may leave
        # it to the first token that is kept.
        half.truncate(part.stop - part.start, direction=side)
        places: list[Place] = self._bare.post_process(half, add_special_tokens=False).offsets
        return places

    def _parts(self, halves: Sequence[Half], side: str) -> list[slice]:
        """What is kept of each half."""
        counts = [len(half) for half in halves]
        kept = counts if sum(counts) <= self._room else _longest_first(counts, self._room)
        if side == "left":
            return [slice(n - k, n) for n, k in zip(counts, kept, strict=True)]
        return [slice(0, k) for k in kept]


def _longest_first(counts: list[int], room: int) -> list[int]:
    """How many tokens of each half are kept of more than ``room`` tokens.

    The longer half is cut; where that is not enough, both to the same.

    Source: ``truncate_encodings`` in ``utils/truncation.rs`` of tokenizers 0.23.
    """
    if len(counts) == 1:
        return [room]
    shorter = min(*counts, room // 2)
    longer = room - shorter
    return [shorter, longer] if counts[0] <= counts[1] else [longer, shorter]
