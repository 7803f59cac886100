"""How long requests wait for the tokenizer itself, from Triton server's own statistics.

A model does not see the queue before it. Where the encoder is quicker than the tokenizer, as on a
GPU, it is that queue which grows under overload, and what is taken from it may be late already.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple
from urllib.parse import urlsplit

# Where Triton server answers over HTTP; `bertron serve` sets it.
URL_VARIABLE = "BERTRON_HTTP_URL"
PERIOD_S = 0.2
# A model that worked for less of the time has no queue that stands, and nobody is asked.
LEAST_WORK = 0.5
# What a request takes besides our work: the server hands it over and takes the answer. Rather too
# much, so that a queue is not missed.
HANDOVER_S = 1e-4
_TIMEOUT_S = 1.0


class Waits(NamedTuple):
    """Sums since the model was loaded."""

    requests: int
    waited_ns: int


class QueueAge:
    """The time that requests wait for a model before it takes them.

    Args:
        read: Asks the server for the sums.
    """

    def __init__(self, read: Callable[[], Waits]) -> None:
        self._read = read
        self._seen: Waits | None = None
        self._worked_s = 0.0
        self._looked = time.monotonic()
        self._us = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep_looking, name="queue age", daemon=True)
        self._thread.start()

    @property
    def us(self) -> int:
        """Microseconds that those waited which were taken in the last PERIOD_S, on average."""
        return self._us

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Around the work on a request."""
        started = time.monotonic()
        yield
        self._worked_s += time.monotonic() - started + HANDOVER_S

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._thread.join()

    def _keep_looking(self) -> None:
        while not self._stopping.wait(PERIOD_S):
            self._look()

    def _look(self) -> None:
        now = time.monotonic()
        share = self._worked_s / (now - self._looked)
        self._worked_s, self._looked = 0.0, now
        if share < LEAST_WORK:
            self._us, self._seen = 0, None
            return
        try:
            found = self._read()
        except (OSError, http.client.HTTPException, ValueError, LookupError):
            self._us, self._seen = 0, None  # nothing is known, and nobody refused for it
            return
        seen, self._seen = self._seen, found
        if seen is not None and found.requests > seen.requests:
            requests = found.requests - seen.requests
            self._us = (found.waited_ns - seen.waited_ns) // requests // 1000


def statistics_of(model: str, url: str) -> Callable[[], Waits]:
    """Return what asks a server for a model's sums.

    On a connection of its own each time, closed afterwards: an idle one would hold up a stop of the
    server.

    Args:
        model: Its name.
        url: Of the HTTP endpoint, such as ``http://127.0.0.1:8000``.
    """
    place = urlsplit(url)
    host, port = place.hostname or "", place.port

    def read() -> Waits:
        connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
        with contextlib.closing(connection):
            connection.request("GET", f"/v2/models/{model}/stats", headers={"Connection": "close"})
            answer = json.loads(connection.getresponse().read())
        queue = [stats["inference_stats"]["queue"] for stats in answer["model_stats"]]
        return Waits(sum(one["count"] for one in queue), sum(one["ns"] for one in queue))

    return read


def watched(model: str) -> QueueAge | None:
    """Return the age of a model's queue; None where nobody said where the server answers."""
    url = os.environ.get(URL_VARIABLE)
    return QueueAge(statistics_of(model, url)) if url else None
