"""A stream of texts: how far it is read ahead, and whose turn it is. No I/O of its own."""

from __future__ import annotations

from typing import Any, Iterable, List, Optional

from ._answers import Limits
from ._exceptions import InvalidInputError
from ._models import Embedding, Embeddings
from ._planning import Batch, Reordering, plan_batches, request_bytes
from ._texts import TextOptions, Texts

# A window is so many full rounds of requests: texts of like length are looked for within it.
_ROUNDS_IN_A_WINDOW = 2
# One window is being answered while the next is read; a row waits for those before it in between.
_WINDOWS_AHEAD = 2


class Stream:
    """The state of one ``embed_iter``.

    Args:
        options: What is to be done with the texts.
        ordered: Whether a row waits for those before it.
        max_requests_in_flight: Requests at the server at a time.
        limits: The model's.

    Attributes:
        window_size: Texts to read at a time.
    """

    def __init__(
        self, options: TextOptions, *, ordered: bool, max_requests_in_flight: int, limits: Limits
    ) -> None:
        self._options = options
        self._limits = limits
        self._requests = max_requests_in_flight
        self._reordering = Reordering(ordered=ordered)
        self._read = 0
        self.window_size = _ROUNDS_IN_A_WINDOW * max_requests_in_flight * limits.max_batch_size

    def requests_wanted(self, running: int) -> int:
        """Return how many more requests may be begun, beside the ``running`` ones.

        Twice as many as are sent at a time, so that the next is at hand when one is answered; and
        none while there are windows of rows that the caller has not taken.
        """
        if self._read - self._reordering.given > _WINDOWS_AHEAD * self.window_size:
            return 0 if running else 1
        return max(0, 2 * self._requests - running)

    def window(self, texts: List[Any], text_pairs: Optional[List[Any]]) -> List[Batch]:
        """Return the next texts as batches.

        Args:
            texts: ``window_size`` of them, or what there was.
            text_pairs: The same of the second texts, or None.

        Raises:
            InvalidInputError: One of them is no text, or too long; ``.index`` says which.
        """
        if text_pairs is not None and len(text_pairs) != len(texts):
            ended = self._read + min(len(texts), len(text_pairs))
            name = "text_pairs" if len(text_pairs) < len(texts) else "texts"
            raise InvalidInputError(f"{name} ended after {ended}, one each is wanted")
        checked = Texts(texts, text_pairs, self._options, self._read)
        checked.check(self._limits.max_characters_per_text)
        batches = plan_batches(
            checked.first,
            checked.second,
            max_batch_size=self._limits.max_batch_size,
            max_bytes=request_bytes(self._limits.max_characters_per_request),
            first=self._read,
        )
        self._read += len(texts)
        return batches

    def put(self, batch: Batch, answer: Embeddings) -> None:
        """Take the answer to one batch."""
        self._reordering.put(batch, answer)

    def take(self) -> Iterable[Embedding]:
        """Give out every row whose turn has come."""
        return self._reordering.take()
