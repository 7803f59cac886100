"""How much the server's counters grew between two moments.

They are read about once a second. A counter's value at a moment is interpolated linearly between
the two readings around it: taking the nearest reading instead would credit up to a second of one
phase to its neighbour.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bertron_loadtest.run_record import Run, Snapshot

Span = tuple[float, float]  # from, to; Unix time
Reader = Callable[[Snapshot], float | None]
Readings = tuple[NDArray[np.float64], NDArray[np.float64]]  # Unix time, value

LEAST_SEEN = 0.5  # of a span; what was seen of less of it does not speak for it
MEMORY_SETTLING_S = 60.0  # or a tenth of the span: caches and pools fill at first
LEAST_SLOPE_READINGS = 3  # two always lie on a line


def of_step(step: str, counter: str) -> Reader:
    """Return what reads a field of ``StepCounters``, of ``ensemble``, ``tokenizer`` or ``bert``."""

    def read(snapshot: Snapshot) -> float | None:
        counters = snapshot.steps.get(step)
        return None if counters is None else float(getattr(counters, counter))

    return read


def executions_of(step: str, texts: int) -> Reader:
    """Return what reads how often a step ran a batch of so many texts."""

    def read(snapshot: Snapshot) -> float | None:
        counters = snapshot.steps.get(step)
        return None if counters is None else counters.batch_sizes.get(texts, 0)

    return read


def of_metric(name: str) -> Reader:
    """Return what reads one of Bertron's own metrics."""
    return lambda snapshot: snapshot.metrics.get(name)


def cpu_s(process: str) -> Reader:
    """Return what reads a process's CPU seconds."""

    def read(snapshot: Snapshot) -> float | None:
        use = snapshot.processes.get(process)
        return None if use is None else use.cpu_s

    return read


def memory_mb(process: str) -> Reader:
    """Return what reads a process's memory, in 10^6 bytes."""

    def read(snapshot: Snapshot) -> float | None:
        use = snapshot.processes.get(process)
        return None if use is None else use.memory_bytes / 1e6

    return read


def readings(run: Run, read: Reader) -> Readings:
    """Return the moments at which ``read`` finds a value, and the values."""
    seen = [(snapshot.time_s, read(snapshot)) for snapshot in run.snapshots]
    pairs = [(time_s, value) for time_s, value in seen if value is not None]
    columns = np.array(pairs, np.float64).reshape(-1, 2)
    return columns[:, 0], columns[:, 1]


def growth(run: Run, span: Span, read: Reader) -> float | None:
    """Return by how much a counter grew in the part of the span that was seen.

    None if that is less than half of it, or if the counter fell: its process began anew.
    """
    seen = _seen_growth(run, span, read)
    return None if seen is None else seen[0]


def growth_per_s(run: Run, span: Span, read: Reader) -> float | None:
    """Return ``growth`` in a second of the part of the span that was seen."""
    seen = _seen_growth(run, span, read)
    return None if seen is None else seen[0] / seen[1]


def ratio(run: Run, span: Span, top: Reader, bottom: Reader) -> float | None:
    """Return one counter's growth by another's; None if either is unknown or nothing happened."""
    grown, by = growth(run, span, top), growth(run, span, bottom)
    return None if grown is None or not by else grown / by


def at_end(run: Run, span: Span, read: Reader) -> float | None:
    """Return the value at the end of a span, or at the last reading within it."""
    times, values = readings(run, read)
    if not len(times) or times[0] > span[1] or times[-1] < span[0]:
        return None
    return float(np.interp(span[1], times, values))


def slope_per_min(run: Run, span: Span, read: Reader) -> float | None:
    """Return the growth a minute by least squares.

    It is of the readings after the span's first minute or first tenth, whichever is shorter;
    None if these are fewer than three.
    """
    times, values = readings(run, read)
    begin = span[0] + min(MEMORY_SETTLING_S, (span[1] - span[0]) / 10)
    inside = (times >= begin) & (times <= span[1])
    if inside.sum() < LEAST_SLOPE_READINGS:
        return None
    minutes = (times[inside] - times[inside].mean()) / 60
    return float(np.dot(minutes, values[inside]) / np.dot(minutes, minutes))


def _seen_growth(run: Run, span: Span, read: Reader) -> tuple[float, float] | None:
    times, values = readings(run, read)
    if len(times) < 2:
        return None
    start, end = max(span[0], times[0]), min(span[1], times[-1])
    if end <= start or end - start < LEAST_SEEN * (span[1] - span[0]):
        return None
    first, last = np.searchsorted(times, start, "right") - 1, np.searchsorted(times, end) + 1
    if (np.diff(values[first:last]) < 0).any():
        return None
    before, after = np.interp([start, end], times, values)
    return float(after - before), float(end - start)
