"""How long a call may take beyond what it was given."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

LATE_S = 0.5


@contextmanager
def ends_within(timeout_s: float) -> Iterator[None]:
    """Assert that the block takes no longer than a call with this timeout may."""
    started = time.monotonic()
    try:
        yield
    finally:
        took_s = time.monotonic() - started
        assert took_s < timeout_s + LATE_S, f"{took_s:.2f} s, {timeout_s} s were allowed"
