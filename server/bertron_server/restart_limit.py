"""How often a server may be started again before somebody should look at it."""

import time
from collections import deque

WINDOW_S = 600.0
_LONGEST_DELAY_S = 30.0


class RestartLimit:
    """Allows some restarts in ten minutes, each after twice the wait of the one before.

    Args:
        most: How many; 0: none at all.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._times: deque[float] = deque()

    def next_delay_s(self) -> float | None:
        """Count one restart; return how long to wait before it, or None where it is one too many.

        The first comes at once: most faults pass with the process that had them.
        """
        now = time.monotonic()
        while self._times and now - self._times[0] > WINDOW_S:
            self._times.popleft()
        if len(self._times) >= self.most:
            return None
        self._times.append(now)
        return min(2.0 ** (len(self._times) - 2), _LONGEST_DELAY_S) if len(self._times) > 1 else 0.0

    @property
    def used(self) -> int:
        """Restarts of the last ten minutes, as of the last count."""
        return len(self._times)
