"""ConcurrentBertClient, as in bert-as-service 1.10, but it waits where that one raised."""

from __future__ import annotations

import threading
from typing import Any

from ._answer import Answer
from ._client import BertClient
from ._deadline import Deadline
from ._texts import Batch


class ConcurrentBertClient(BertClient):
    """A BertClient with at most ``max_concurrency`` batches at the server at a time.

    A BertClient is safe to share between threads too, and has no such bound. A batch that finds
    all places taken waits for one within its time limit. ``fetch``, ``fetch_all`` and
    ``encode_async`` work as they do there.

    Args:
        max_concurrency: Batches at the server at a time, from all threads together.
        kwargs: As BertClient.

    Raises:
        ValueError: As BertClient, or ``max_concurrency`` is below 1.
    """

    def __init__(self, max_concurrency: int = 10, **kwargs: Any) -> None:
        if max_concurrency < 1:
            raise ValueError(f"max_concurrency is {max_concurrency}, it must be at least 1")
        self._max_concurrency = max_concurrency
        self._places = threading.BoundedSemaphore(max_concurrency)
        super().__init__(**kwargs)

    def _ask(self, batch: Batch, show_tokens: bool, deadline: Deadline) -> Answer:
        if not self._places.acquire(timeout=deadline.left_s()):
            raise deadline.exceeded(
                f"all {self._max_concurrency} places were taken and none came free"
            )
        try:
            return super()._ask(batch, show_tokens, deadline)
        finally:
            self._places.release()
