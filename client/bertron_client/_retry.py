"""Which faults are tried again, and after how long."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Optional

from ._exceptions import BertronError, OverloadedError, ServerUnavailableError

_MOST_DOUBLINGS = 1000  # 2.0**1024 is no float any more


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how soon a request is sent again, always within the call's deadline.

    Only faults that pass by themselves are tried again: ServerUnavailableError and
    OverloadedError. An embedding is computed from its text alone, so asking twice does no harm.

    Pauses double from ``first_pause_s`` to ``longest_pause_s``, and each is shortened by up to a
    half at random, so that clients which failed together do not come back together. Where the
    server names a time (Retry-After), that is waited for, or given up if the call ends before it.

    Attributes:
        max_retries: Times a request is sent again; 0 for never.
        first_pause_s: Longest first pause.
        longest_pause_s: Longest pause of all.
    """

    max_retries: int = 2
    first_pause_s: float = 0.1
    longest_pause_s: float = 5.0

    def __post_init__(self) -> None:
        if self.max_retries < 0:
            raise ValueError(f"max_retries is {self.max_retries}, it must be at least 0")
        if not 0 <= self.first_pause_s <= self.longest_pause_s:
            raise ValueError(
                f"first_pause_s is {self.first_pause_s} and longest_pause_s "
                f"{self.longest_pause_s}, the first must be from 0 to the longest"
            )

    def pause_s(self, error: BertronError, retries: int) -> Optional[float]:
        """Return the pause before the next try, or None when there is to be none.

        Args:
            error: What the last try ended with.
            retries: How many there have been.
        """
        if retries >= self.max_retries:
            return None
        if not isinstance(error, (ServerUnavailableError, OverloadedError)):
            return None
        if error.retry_after_s is not None:
            return error.retry_after_s
        doubled_s = self.first_pause_s * 2.0 ** min(retries, _MOST_DOUBLINGS)
        longest = min(doubled_s, self.longest_pause_s)
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
