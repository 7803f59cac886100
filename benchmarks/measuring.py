"""What every benchmark shares: repeated timing, percentiles, and where and with what it ran."""

import datetime
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

PACKAGES = ("torch", "triton", "transformers", "sentence-transformers", "tokenizers", "numpy")


def seconds(call: Callable[[], object]) -> float:
    """One call's wall time."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def interleaved(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Wall times of each call, taken in turns, so that a noisy minute hits all of them."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()  # warm
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(seconds(call))
    return times


def spread(values: list[float]) -> str:
    """Median with the smallest and largest."""
    return f"{statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g})"


def setting() -> str:
    """Machine, date and versions, for under a table."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    cores = len(os.sched_getaffinity(0))
    return f"{cpu}, {cores} cores; {today}; Python {platform.python_version()}, {versions}"


def table(headings: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
