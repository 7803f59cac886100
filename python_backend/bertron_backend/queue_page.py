"""The page on which encoders tell a tokenizer how far they have come, and how fast they are.

One page a tokenizer, a file in memory that all of them map. Its first line is the tokenizer's, each
other one an encoder's. Nobody waits for anybody: each number is written by one process and read by
others.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import secrets
from pathlib import Path

from bertron_backend.shared_files import closed_unless_kept, open_in_use

PAGE_BYTES = 4096
_ATTEMPTS = 3  # to make a page while others sweep the directory


def default_directory() -> Path:
    """Where the models of this user's servers meet: in memory, where their tensors are too."""
    return Path(f"/dev/shm/bertron-queues-{os.geteuid()}")  # noqa: S108 - a directory of its own


def path_of(directory: Path, queue: int) -> Path:
    """Where the page of a queue lies."""
    return directory / f"{queue:016x}"


class Head(ctypes.Structure):
    """What the tokenizer says, in as many bytes as a line has."""

    _fields_ = (
        ("handed_on", ctypes.c_int64),  # tokens so far: no true ticket has a higher number
        ("_rest", ctypes.c_int64 * 7),
    )


class Line(ctypes.Structure):
    """What one encoder says on a page: a cache line, which no other encoder writes into."""

    _fields_ = (
        ("pid", ctypes.c_int64),  # 0: the line is free
        ("place", ctypes.c_int64),  # up to which number it has come
        ("ns_per_token", ctypes.c_int64),
        ("is_busy", ctypes.c_int64),
        ("changed_us", ctypes.c_int64),  # since when it is busy, or not
        ("_rest", ctypes.c_int64 * 3),
    )


class Page:
    """A file of lines, mapped."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor  # has the lock that says that the file is in use
        with closed_unless_kept(descriptor) as keep:
            if os.fstat(descriptor).st_size != PAGE_BYTES:
                raise OSError(f"a queue's page has {PAGE_BYTES} bytes")
            mapping = mmap.mmap(descriptor, PAGE_BYTES)
            keep()
        self.head = Head.from_buffer(mapping)
        # A tuple, since an array makes a new object at each look: 6 us of every request, not 1.
        self._lines: tuple[Line, ...] = tuple(
            (Line * (PAGE_BYTES // ctypes.sizeof(Line) - 1)).from_buffer(
                mapping, ctypes.sizeof(Head)
            )
        )

    def lines(self) -> list[Line]:
        """Those of encoders."""
        return [line for line in self._lines if line.pid]

    def claim(self) -> Line | None:
        """A line for this process, or None where there is none, or another one is taking one."""
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        try:
            for line in self._lines:
                if not line.pid:
                    line.pid = os.getpid()
                    return line
            return None
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)

    def remove_dead(self) -> bool:
        """Free the lines of processes that are gone; whether there were any."""
        dead = [line for line in self.lines() if not _is_alive(line.pid)]
        for line in dead:
            line.pid = 0
        return bool(dead)

    def is_gone(self) -> bool:
        """Whether its queue was closed."""
        return os.fstat(self._descriptor).st_nlink == 0

    def close(self) -> None:
        """Give up the lock; the mapping goes with the last line that somebody holds."""
        os.close(self._descriptor)


def make_page(directory: Path) -> tuple[int, Path, int]:
    """A queue's name, its file and the descriptor."""
    for _ in range(_ATTEMPTS):
        queue = secrets.randbits(62) + 1
        path = path_of(directory, queue)
        descriptor = open_in_use(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        if descriptor is not None:
            with closed_unless_kept(descriptor) as keep:
                os.posix_fallocate(descriptor, 0, PAGE_BYTES)  # a full disk says so now
                keep()
            return queue, path, descriptor
    raise OSError(f"a page in {directory} was removed {_ATTEMPTS} times as soon as it was made")


def _is_alive(pid: int) -> bool:
    """Whether it runs: a zombie, which Triton server may leave for good, does not."""
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (ProcessLookupError, FileNotFoundError):
        return False
    except PermissionError:  # another user's process has the number by now
        return False
    return stat.rpartition(b")")[2].split()[0] not in (b"Z", b"X")
