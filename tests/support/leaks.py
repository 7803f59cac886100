"""What a test may not leave behind: sockets, threads and shared memory."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_SETTLING_S = 5.0  # gRPC closes its sockets in its own time


def _open_files() -> tuple[int, set[str]]:
    """How many sockets this process has, and which shared memory objects it has open."""
    sockets, memory = 0, set()
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            target = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115
        except OSError:
            continue  # the list's own, closed by now
        sockets += target.startswith("socket:")
        if target.startswith("/dev/shm/"):  # noqa: S108
            memory.add(target)
    return sockets, memory


@contextmanager
def nothing_left() -> Iterator[None]:
    """Assert that the block leaves no socket, thread or shared memory."""
    threads = set(threading.enumerate())
    sockets, memory = _open_files()
    yield
    ended = time.monotonic()
    collect_at_s = 0.5  # what needs the collector to go is not nothing, but is left to Python
    while True:
        sockets_now, memory_now = _open_files()
        new_sockets, new_memory = sockets_now - sockets, memory_now - memory
        new_threads = [thread.name for thread in set(threading.enumerate()) - threads]
        if new_sockets <= 0 and not new_threads and not new_memory:
            return
        waited_s = time.monotonic() - ended
        if waited_s > _SETTLING_S:
            break
        if waited_s > collect_at_s:
            gc.collect()  # costs a fifth of a second where pandas and its like are loaded
            collect_at_s += 1.0
        time.sleep(0.005)
    raise AssertionError(
        f"left behind: {new_sockets} sockets, threads {new_threads}, memory {new_memory}"
    )
