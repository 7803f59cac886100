"""How large the batches were: counted with each, and brought to the server's metrics in sums."""

from __future__ import annotations

import itertools
import threading
from bisect import bisect_left
from collections.abc import Callable
from typing import NamedTuple

PERIOD_S = 1.0
BUCKETS = tuple(2**power for power in range(4, 15))  # tokens a batch, at most
_BOUNDS = (*map(str, BUCKETS), "+Inf")
# Buckets are counters, each with the batches of those below it, as in a histogram of Prometheus: to
# one of Triton server's own, every batch would have to be sent.
DESCRIPTIONS = {
    "bertron_tokens_total": "Tokens computed, without padding",
    "bertron_padded_tokens_total": "Tokens of the same batches, padded to their longest text",
    "bertron_texts_total": "Texts computed",
    "bertron_batch_tokens_bucket": "Batches of at most so many tokens",
    "bertron_batch_tokens_count": "Batches computed",
    "bertron_batch_tokens_sum": "Tokens of all batches",
}


class Counter(NamedTuple):
    """A metric, and its bucket's upper bound where it has one."""

    name: str
    le: str | None = None


class BatchCounts:
    """Sums over batches; one thread may add while another takes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._clear()

    def add(self, texts: int, tokens: int, longest: int) -> None:
        """Count a batch.

        Args:
            texts: In it.
            tokens: Of all its texts.
            longest: Tokens of its longest text.
        """
        with self._lock:
            self._tokens += tokens
            self._padded_tokens += texts * longest
            self._texts += texts
            self._batches[bisect_left(BUCKETS, tokens)] += 1

    def take(self) -> dict[Counter, int]:
        """Return by how much each counter has grown since the last time."""
        with self._lock:
            tokens, padded_tokens, texts = self._tokens, self._padded_tokens, self._texts
            up_to = list(itertools.accumulate(self._batches))
            self._clear()
        return {
            Counter("bertron_tokens_total"): tokens,
            Counter("bertron_padded_tokens_total"): padded_tokens,
            Counter("bertron_texts_total"): texts,
            **{
                Counter("bertron_batch_tokens_bucket", bound): batches
                for bound, batches in zip(_BOUNDS, up_to, strict=True)
            },
            Counter("bertron_batch_tokens_count"): up_to[-1],
            Counter("bertron_batch_tokens_sum"): tokens,
        }

    def _clear(self) -> None:
        self._tokens = self._padded_tokens = self._texts = 0
        self._batches = [0] * len(_BOUNDS)


class CountPublisher:
    """Takes the counts every PERIOD_S, in a thread of its own: no request waits for that.

    Args:
        counts: Where batches are counted.
        publish: Adds to a counter, or to nothing at first, so that it is there.
    """

    def __init__(self, counts: BatchCounts, publish: Callable[[Counter, int], None]) -> None:
        self._counts = counts
        self._publish = publish
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep_publishing, name="metrics", daemon=True)
        self._publish_all()
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._thread.join()

    def _keep_publishing(self) -> None:
        while not self._stopping.wait(PERIOD_S):
            self._publish_all()

    def _publish_all(self) -> None:
        for counter, growth in self._counts.take().items():
            self._publish(counter, growth)
