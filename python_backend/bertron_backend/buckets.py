"""The few shapes that a packed batch is padded to, so that a CUDA graph can be made of each.

A graph replays the launches that it has seen, on the tensors that it has seen. A batch is therefore
laid out in the smallest bucket that holds it: its tokens with others after them that belong to no
text, its texts with others after them that have no tokens.
"""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import torch
from bertron_kernels.attention import length_class

from bertron_backend.packing import IntArray, PackedBatch

Buffer = TypeVar("Buffer", IntArray, torch.Tensor)

TOKENS_PER_TEXT = 8  # of a bucket; a batch of shorter texts takes a bucket of more tokens


@dataclasses.dataclass(frozen=True)
class Bucket:
    """One shape, and how its inputs lie in a single buffer.

    Attributes:
        tokens: Packed tokens, a multiple of 16: what follows each section of the buffer is then
            aligned as the kernels like it.
    """

    tokens: int

    @property
    def texts(self) -> int:
        """As many fit."""
        return max(2, self.tokens // TOKENS_PER_TEXT)

    @property
    def size(self) -> int:
        """Elements of the buffer that are used."""
        return 3 * self.tokens + self.texts + 1

    def sections(self, buffer: Buffer) -> tuple[Buffer, Buffer, Buffer, Buffer]:
        """Views of ``buffer`` [size or more] int32, in the order of ``Bert.forward_positions``.

        Returns:
            input_ids, token_type_ids and position_ids, each [tokens]; cu_seqlens [texts + 1].
        """
        first, second, third = self.tokens, 2 * self.tokens, 3 * self.tokens
        return buffer[:first], buffer[first:second], buffer[second:third], buffer[third : self.size]

    def fill(self, buffer: IntArray, batch: PackedBatch, position_ids: IntArray) -> None:
        """Lay ``batch`` out in ``buffer``; every element that is used is written.

        Tokens of no text have id, type and position 0, which every table has; texts of no tokens
        begin and end where the last real one ends.
        """
        arrays = (batch.input_ids, batch.token_type_ids, position_ids, batch.cu_seqlens)
        fillers = (0, 0, 0, batch.cu_seqlens[-1])
        for section, array, filler in zip(self.sections(buffer), arrays, fillers, strict=True):
            section[: len(array)] = array
            section[len(array) :] = filler


BUCKETS = tuple(Bucket(2**power) for power in range(4, 14))  # 16 to 8192 tokens


def bucket_for(tokens: int, texts: int) -> Bucket | None:
    """The smallest bucket that holds so many, or None where none does."""
    return next((b for b in BUCKETS if tokens <= b.tokens and texts <= b.texts), None)


def longest_by_class(tokens: int, max_tokens_per_text: int) -> dict[int, int]:
    """The longest text of each length class that a batch of at most ``tokens`` can have.

    Returns:
        By :func:`bertron_kernels.attention.length_class`, shortest class first. What is launched
        for the longest text of a class is right for every mix of lengths within it.
    """
    longest = min(tokens, max_tokens_per_text)
    return {length_class(length): length for length in range(1, longest + 1)}
