"""One call's time limit, and the way to abandon what it has in flight."""

from __future__ import annotations

import copy
import math
import threading
import time
from contextlib import contextmanager
from typing import Callable, Iterator, List

from ._exceptions import BertronError, DeadlineExceededError

MAX_TIMEOUT_S = 86_400.0  # a day; far larger numbers overflow the operating system's timers


class CallCancelledError(BertronError):
    """Another request of the same call failed; never reaches the caller."""


def checked_timeout_s(timeout_s: float, name: str = "timeout_s") -> float:
    """Return ``timeout_s`` as a float.

    Raises:
        TypeError: Not a number.
        ValueError: Not a number of seconds that a call can take.
    """
    if isinstance(timeout_s, bool) or not hasattr(timeout_s, "__float__"):
        raise TypeError(f"{name} is {timeout_s!r}, a number of seconds is wanted")
    seconds = float(timeout_s)
    if math.isnan(seconds) or not 0 < seconds <= MAX_TIMEOUT_S:
        raise ValueError(
            f"{name} is {timeout_s!r}, it must be more than 0 and at most {MAX_TIMEOUT_S:.0f} s"
        )
    return seconds


class Call:
    """A deadline shared by all requests of one call."""

    def __init__(self, where: str, timeout_s: float) -> None:
        self.where = where
        self._timeout_s = checked_timeout_s(timeout_s)
        self._deadline = time.monotonic() + self._timeout_s
        self._lock = threading.Lock()
        self._aborts: List[Callable[[], object]] = []
        self._cancelled = threading.Event()
        self.has_siblings = False  # several requests at once, which fail together

    def remaining_s(self) -> float:
        """Seconds left, always more than 0.

        Raises:
            DeadlineExceededError: None are left.
            CallCancelledError: The call was given up.
        """
        if self._cancelled.is_set():
            raise CallCancelledError(f"cancelled ({self.where})")
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise self.exceeded()
        return remaining

    @property
    def remaining_us(self) -> int:
        """As ``remaining_s``, in the server's unit."""
        return max(1, int(self.remaining_s() * 1e6))

    @property
    def left_s(self) -> float:
        """Seconds left; 0 where there are none."""
        return max(0.0, self._deadline - time.monotonic())

    def limited(self, timeout_s: float) -> Call:
        """Return this call with an earlier end; both are given up together."""
        part = copy.copy(self)
        part._deadline = min(self._deadline, time.monotonic() + timeout_s)
        return part

    def pause(self, seconds: float) -> None:
        """Wait, but neither beyond the deadline nor beyond the call's end.

        Raises:
            DeadlineExceededError: The deadline passed meanwhile.
            CallCancelledError: The call was given up meanwhile.
        """
        self._cancelled.wait(min(seconds, self.remaining_s()))
        self.remaining_s()

    def exceeded(self) -> DeadlineExceededError:
        """Return the error that says this call took too long."""
        return DeadlineExceededError(
            f"no complete answer within {self._timeout_s:g} s ({self.where})"
        )

    def is_over(self, within_s: float = 0.0) -> bool:
        """Whether the deadline has passed or is less than ``within_s`` away."""
        return time.monotonic() + within_s >= self._deadline

    @property
    def is_cancelled(self) -> bool:
        """Whether the call was given up."""
        return self._cancelled.is_set()

    @contextmanager
    def abortable(self, abort: Callable[[], object]) -> Iterator[None]:
        """Have ``abort`` called, from another thread, if the call is given up meanwhile."""
        with self._lock:
            if self._cancelled.is_set():
                raise CallCancelledError(f"cancelled ({self.where})")
            self._aborts.append(abort)
        try:
            yield
        finally:
            with self._lock:
                self._aborts.remove(abort)

    def cancel(self) -> None:
        """Give the call up and abort whatever it has in flight."""
        with self._lock:  # held throughout, so that no abort touches a connection handed on
            self._cancelled.set()
            for abort in self._aborts:
                abort()
