"""What a test may not leave behind: sockets, threads and shared memory."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SETTLING_S = 5.0  # gRPC closes its sockets in its own time


def open_sockets() -> int:
    """How many sockets this process has."""
    found = 0
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            found += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")  # noqa: PTH115
        except OSError:
            continue  # the list's own, closed by now
    return found


def shared_memory_maps() -> set[str]:
    """Shared memory objects that this process has mapped, those already unlinked too."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    paths = {line.split(None, 5)[-1] for line in lines}
    return {path for path in paths if path.startswith("/dev/shm/")}  # noqa: S108


@contextmanager
def nothing_left() -> Iterator[None]:
    """Assert that the block leaves no socket, thread or shared memory."""
    sockets, threads = open_sockets(), set(threading.enumerate())
    memory = shared_memory_maps()
    yield
    ended = time.monotonic()
    collect_at_s = 0.5  # what needs the collector to go is not nothing, but is left to Python
    while True:
        new_sockets = open_sockets() - sockets
        new_threads = [thread.name for thread in set(threading.enumerate()) - threads]
        new_memory = shared_memory_maps() - memory
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
