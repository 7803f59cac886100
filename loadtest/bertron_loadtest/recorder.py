"""Keeps what calls did, in the process that makes them, and gathers it where there are several."""

import time
from collections.abc import Mapping
from typing import Any

from bertron_loadtest.phases import PhaseRecord
from bertron_loadtest.samples import Sample

_LONGEST_ERROR = 200  # characters of a message


class Clock:
    """Unix time that never jumps back: it is looked up once, and then counted."""

    def __init__(self) -> None:
        self._offset_s = time.time() - time.perf_counter()

    def now(self) -> float:
        """Return the Unix time."""
        return self._offset_s + time.perf_counter()


class Recorder:
    """The calls of one process; in a distributed run the workers' are merged into the master's.

    Attributes:
        samples: Of calls that ended, since the last ``drain``.
        sent: Calls that were begun.
        not_sent: Arrivals of an open loop for which there was no room.
        phases: Filled by whoever decides how many users there are.
        ready_s: When the last process had its known vectors; no call is made before.
        problem: Why the run cannot go on; "" while it can.
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.samples: list[Sample] = []
        self.sent = 0
        self.not_sent = 0
        self.phases: list[PhaseRecord] = []
        self.ready_s = 0.0
        self.problem = ""

    def drain(self) -> dict[str, Any]:
        """Return what came since the last time, for the master."""
        report = {
            "samples": [list(sample) for sample in self.samples],
            "sent": self.sent,
            "not_sent": self.not_sent,
            "ready_s": self.ready_s,
            "problem": self.problem,
        }
        self.samples, self.sent, self.not_sent = [], 0, 0
        return report

    def merge(self, report: Mapping[str, Any]) -> None:
        """Take what a worker drained."""
        self.samples += [Sample(*fields) for fields in report["samples"]]
        self.sent += report["sent"]
        self.not_sent += report["not_sent"]
        self.ready_s = max(self.ready_s, report["ready_s"])
        self.problem = self.problem or report["problem"]

    def texts_per_s(self, start_s: float, end_s: float) -> float:
        """Return the texts of right calls that ended in a time, by its length."""
        texts = 0
        for sample in reversed(self.samples):
            sample_end_s = sample.due_s + sample.latency_s
            # Samples come almost in the order of their ends; workers report every three seconds.
            if sample_end_s < start_s - 10:
                break
            if start_s <= sample_end_s < end_s and not sample.error:
                texts += sample.texts
        return texts / (end_s - start_s)


def describe(error: BaseException) -> str:
    """Return class and message of an exception, in a line."""
    message = " ".join(str(error).split())[:_LONGEST_ERROR]
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
