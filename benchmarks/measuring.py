"""What every benchmark shares: interleaved timing, the gates, and results with their source."""

import csv
import datetime
import importlib.metadata
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "triton", "transformers", "sentence-transformers", "tokenizers", "numpy")
# Smallest cosine of any text with transformers float32, below which a speed is not worth printing.
REQUIRED_COSINE = {"float32": 0.99999, "bfloat16": 0.9999, "float16": 0.9999, "int8": 0.999}
MOST_ROUNDS = 50  # of a workload that takes milliseconds
HARD_LIMIT = 10  # times a workload's budget: on a busy machine fewer rounds must do
SETTLE_S = 0.05  # thread pools spin for a while after their work, which the next would pay for


def seconds(call: Callable[[], object]) -> float:
    """One call's wall time."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def interleaved(
    timers: Mapping[str, Callable[[], float]], *, budget_s: float, least: int
) -> dict[str, list[float]]:
    """Times of each, taken in turns, so that a noisy minute hits all of them.

    Args:
        timers: Each runs its work once and returns what that took, in seconds; warm already.
        budget_s: No round begins later than this, once there are ``least``.
        least: Rounds, unless HARD_LIMIT times the budget is over.
    """
    order = list(timers)
    times: dict[str, list[float]] = {name: [] for name in timers}
    started = time.perf_counter()
    for turn in range(MOST_ROUNDS):
        elapsed = time.perf_counter() - started
        if turn and elapsed > budget_s * (1 if turn >= least else HARD_LIMIT):
            break
        for name in order:
            time.sleep(SETTLE_S)
            times[name].append(timers[name]())
        order.append(order.pop(0))  # nobody always follows the same neighbour
    return times


def ratio(base: Sequence[float], other: Sequence[float]) -> float:
    """How many times as fast as ``base``: the median over rounds, each against its own round."""
    return statistics.median(a / b for a, b in zip(base, other, strict=True))


def smallest_cosine(found: np.ndarray, expected: np.ndarray) -> float:
    """Of any row of [B, E]; NaN where a value is not finite."""
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    return float(((found * expected).sum(1) / norms).min())


def spread(values: Sequence[float]) -> str:
    """Median with the smallest and largest."""
    return f"{statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g})"


def setting(others: Mapping[str, str] | None = None) -> str:
    """Machine, date, commit and versions, for under a table."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    versions = {name: importlib.metadata.version(name) for name in PACKAGES} | dict(others or {})
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    cores = len(os.sched_getaffinity(0))
    return (
        f"{cpu}, {cores} cores; {today}, {commit()}; Python {platform.python_version()}, {listed}"
    )


def commit() -> str:
    """The commit that was measured, and whether the tree was it."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "no commit"
    return f"commit {done.stdout.strip()}"


def load_average() -> float:
    """Of the last minute, every process counted: what else ran tells how far to trust a figure."""
    return os.getloadavg()[0]


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_results(
    directory: Path, name: str, markdown: str, headings: Sequence[str], rows: Sequence[Sequence]
) -> None:
    """``NAME.md`` for people and ``NAME.csv`` for programs, each whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    draft = directory / f"{name}.tmp"
    draft.write_text(markdown, encoding="utf-8")
    draft.replace(directory / f"{name}.md")
    with draft.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(headings)
        writer.writerows(rows)
    draft.replace(directory / f"{name}.csv")
