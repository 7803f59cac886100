"""Callers of a server, some threads in a process of their own, which imports nothing heavy."""

import dataclasses
import threading
import time
from collections.abc import Sequence

from bertron_client import Client


@dataclasses.dataclass(frozen=True)
class Load:
    """What one process of callers does."""

    url: str
    callers: int
    texts_a_call: int
    texts: Sequence[str]
    begins: float  # seconds of time.time(), as for the next
    ends: float


def call_until(load: Load) -> tuple[int, list[float]]:
    """Closed loops of ``load.callers`` threads; texts answered and seconds of calls in its time."""
    done: list[tuple[int, list[float]]] = []

    def one(number: int) -> None:
        count, took = 0, []
        with Client(load.url) as client:
            first = number * load.texts_a_call
            while time.time() < load.ends:
                own = [load.texts[(first + i) % len(load.texts)] for i in range(load.texts_a_call)]
                started = time.time()
                client.embed(own)
                ended = time.time()
                if load.begins <= ended < load.ends:
                    count += len(own)
                    took.append(ended - started)
                first += load.callers * load.texts_a_call
        done.append((count, took))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(load.callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(done) < load.callers:
        raise RuntimeError(f"{load.callers - len(done)} of {load.callers} callers broke off")
    return sum(count for count, _ in done), [second for _, took in done for second in took]
