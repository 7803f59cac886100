"""bert-as-service's time limits, in milliseconds, made finite."""

from __future__ import annotations

import math
import time
from typing import NamedTuple

from .._call import MAX_TIMEOUT_S
from .._exceptions import DeadlineExceededError

# A call of 1.10 could take any time, and lists of 100,000 texts are usual in its programs; on two
# cores that is minutes. What is down or unreachable is noticed in seconds whatever this is.
DEFAULT_TIMEOUT_MS = 600_000.0


class Deadline(NamedTuple):
    """When a call must have its answer."""

    timeout_s: float
    at: float  # time.monotonic()

    @classmethod
    def after(cls, timeout_s: float) -> Deadline:
        """The moment ``timeout_s`` from now."""
        return cls(timeout_s, time.monotonic() + timeout_s)

    def left_s(self) -> float:
        """Seconds left, more than 0 and in whole milliseconds, which messages then name.

        Raises:
            DeadlineExceededError: None are left.
        """
        left = self.at - time.monotonic()
        if left <= 0:
            raise self.exceeded("no complete answer")
        return math.ceil(left * 1e3) / 1e3

    def exceeded(self, what: str) -> DeadlineExceededError:
        """Return the error that says what did not come in time."""
        return DeadlineExceededError(f"{what} within {self.timeout_s:g} s")


def seconds(timeout_ms: float) -> float:
    """Return a time limit of 1.10 in seconds; -1, "for ever" there, is the longest there is.

    Raises:
        ValueError: Neither -1 nor a number of milliseconds that a call can take.
    """
    if timeout_ms == -1:
        return MAX_TIMEOUT_S
    if not 0 < timeout_ms <= MAX_TIMEOUT_S * 1e3:
        raise ValueError(
            f"timeout is {timeout_ms!r}, it must be more than 0 and at most "
            f"{MAX_TIMEOUT_S * 1e3:.0f} ms, or -1 for that"
        )
    return timeout_ms / 1e3
