"""How texts are put into requests, and rows back into the caller's order. Pure."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Deque, Dict, Iterator, List, Optional, Sequence

from ._exceptions import InvalidInputError
from ._models import Embedding, Embeddings

# UTF-8 of one request's texts; a longer text travels alone. More than any BERT reads of 64 texts,
# and so little that four requests at once cost no memory to speak of.
MAX_REQUEST_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Batch:
    """The texts of one request, as UTF-8.

    Attributes:
        indices: Row of each text in the caller's list.
        texts: At least one.
        text_pairs: As many, or None.
    """

    indices: Sequence[int]
    texts: List[bytes]
    text_pairs: Optional[List[bytes]]


def check_lengths(texts: Sequence[str], limit: Optional[int], name: str, first: int = 0) -> None:
    """Refuse a text that the server would refuse, before it crosses the network.

    Args:
        texts: As the caller gave them.
        limit: Characters that the server takes, or None.
        name: Of the argument.
        first: Place of the first of them in the caller's list.

    Raises:
        InvalidInputError: A text has more than ``limit`` characters.
    """
    if limit is None:
        return
    for index, text in enumerate(texts, first):
        if len(text) > limit:
            raise InvalidInputError(
                f"{name}[{index}] has {len(text)} characters, the server takes at most {limit}",
                index=index,
            )


def request_bytes(max_characters: Optional[int]) -> int:
    """Return how much UTF-8 goes into one request, each character being a byte or more.

    Args:
        max_characters: That the server takes in a request, or None.
    """
    return MAX_REQUEST_BYTES if max_characters is None else min(MAX_REQUEST_BYTES, max_characters)


def plan_batches(
    texts: Sequence[bytes],
    text_pairs: Optional[Sequence[bytes]],
    *,
    max_batch_size: int,
    max_bytes: int = MAX_REQUEST_BYTES,
    first: int = 0,
) -> List[Batch]:
    """Split texts into batches of nearly equal size, texts of similar length together.

    The longest come first: when they are sent several at a time, a long one started last would
    be waited for alone.

    Args:
        texts: The first texts.
        text_pairs: As many second texts, or None.
        max_batch_size: Texts in a batch.
        max_bytes: UTF-8 in a batch; a longer text is a batch of its own.
        first: Place of the first text in the caller's list.
    """
    count = len(texts)
    lengths = [len(text) for text in texts]
    if text_pairs is not None:
        lengths = [length + len(text_pairs[row]) for row, length in enumerate(lengths)]
    order = sorted(range(count), key=lengths.__getitem__, reverse=True)
    num_batches = math.ceil(count / max_batch_size)
    even = (
        order[number * count // num_batches : (number + 1) * count // num_batches]
        for number in range(num_batches)
    )
    return [
        Batch(
            indices=[first + row for row in rows],
            texts=[texts[row] for row in rows],
            text_pairs=None if text_pairs is None else [text_pairs[row] for row in rows],
        )
        for part in even
        for rows in _split_by_bytes(part, lengths, max_bytes)
    ]


def _split_by_bytes(
    rows: Sequence[int], lengths: Sequence[int], max_bytes: int
) -> Iterator[List[int]]:
    part: List[int] = []
    size = 0
    for row in rows:
        if part and size + lengths[row] > max_bytes:
            yield part
            part, size = [], 0
        part.append(row)
        size += lengths[row]
    yield part


class Reordering:
    """Rows as their batches arrive, given out in the order of the texts or as they came.

    Args:
        ordered: Whether a row waits for those before it.
    """

    def __init__(self, *, ordered: bool) -> None:
        self._ordered = ordered
        self._waiting: Dict[int, Embedding] = {}
        self._ready: Deque[Embedding] = deque()
        self._next = 0
        self.given = 0  # rows given out so far

    def put(self, batch: Batch, answer: Embeddings) -> None:
        """Take the answer to one batch."""
        for row, index in enumerate(batch.indices):
            embedding = Embedding(
                index,
                answer.vectors[row].copy(),  # a view would hold the whole batch
                int(answer.token_counts[row]),
                bool(answer.truncated[row]),
            )
            if self._ordered:
                self._waiting[index] = embedding
            else:
                self._ready.append(embedding)
        while self._next in self._waiting:
            self._ready.append(self._waiting.pop(self._next))
            self._next += 1

    def take(self) -> Iterator[Embedding]:
        """Give out every row whose turn has come."""
        while self._ready:
            self.given += 1
            yield self._ready.popleft()
