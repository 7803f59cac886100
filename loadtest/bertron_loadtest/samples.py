"""One line for each call of a run: when it was due, how long it took, and how it ended."""

import csv
import enum
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Outcome(enum.StrEnum):
    """How a call ended."""

    RIGHT = "right"
    WRONG = "wrong"  # answered, and the answer is not the texts' embeddings
    REFUSED = "refused"  # the server said that it is overloaded
    TIMED_OUT = "timed_out"  # no answer before the call's deadline
    DISCONNECTED = "disconnected"  # no connection, or it was lost
    FAILED = "failed"  # any other error


class Sample(NamedTuple):
    """One call.

    Attributes:
        due_s: When it should begin, as Unix time: in an open loop, its arrival. Latency counts
            from here, so that a call that had to wait for its turn does not hide it.
        lag_s: How much later the load generator sent it.
        latency_s: From ``due_s`` until its answer was read; the check of the answer excluded.
        caller: Name of the way it was sent.
        texts: In the call.
        tokens: That the server says it read; 0 where it does not say, or did not answer.
        outcome: One of ``Outcome``'s values.
        error: Class and message of what went wrong; "" where nothing did.
    """

    due_s: float
    lag_s: float
    latency_s: float
    caller: str
    texts: int
    tokens: int
    outcome: str
    error: str


class Samples:
    """The samples of a run as columns, in the order of their ends."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        rows = sorted(samples, key=lambda sample: sample.due_s + sample.latency_s)
        self.due_s: NDArray[np.float64] = np.array([row.due_s for row in rows], np.float64)
        self.lag_s: NDArray[np.float64] = np.array([row.lag_s for row in rows], np.float64)
        self.latency_s: NDArray[np.float64] = np.array([row.latency_s for row in rows], np.float64)
        self.texts: NDArray[np.int64] = np.array([row.texts for row in rows], np.int64)
        self.tokens: NDArray[np.int64] = np.array([row.tokens for row in rows], np.int64)
        self.caller: NDArray[Any] = np.array([row.caller for row in rows], dtype=object)
        self.outcome: NDArray[Any] = np.array([row.outcome for row in rows], dtype=object)
        self.error: NDArray[Any] = np.array([row.error for row in rows], dtype=object)

    @property
    def end_s(self) -> NDArray[np.float64]:
        """When each ended, as Unix time."""
        return self.due_s + self.latency_s

    def __len__(self) -> int:
        return len(self.due_s)

    def __iter__(self) -> Iterator[Sample]:
        for row in zip(
            *(self.due_s.tolist(), self.lag_s.tolist(), self.latency_s.tolist()),
            *(self.caller, self.texts.tolist(), self.tokens.tolist(), self.outcome, self.error),
            strict=True,
        ):
            yield Sample(*row)


def write_samples(path: Path, samples: Iterable[Sample]) -> None:
    """Write a CSV file with a heading."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Sample._fields)
        for sample in samples:
            times = (f"{seconds:.6f}" for seconds in sample[:3])
            writer.writerow([*times, *sample[3:]])


def read_samples(path: Path) -> list[Sample]:
    """Read what ``write_samples`` wrote.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is none of these files.
    """
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.reader(file)
        if tuple(next(lines, ())) != Sample._fields:
            raise ValueError(f"{path} has not the columns {', '.join(Sample._fields)}")
        return [_sample(line) for line in lines]


def _sample(line: Sequence[str]) -> Sample:
    due, lag, latency, caller, texts, tokens, outcome, error = line
    seconds = float(due), float(lag), float(latency)
    return Sample(*seconds, caller, int(texts), int(tokens), outcome, error)
