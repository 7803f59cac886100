"""How many cores this process may use: by its affinity, and by its container's quota."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


def usable_cores(cgroups: Path = CGROUPS, own_cgroup: Path = OWN_CGROUP) -> int:
    """Cores that this process may run on, at least 1.

    A container with a limit of four CPUs on a machine of 64 may run on all of them, and is held up
    for the rest of each tenth of a second in which it has used four for long enough: more threads
    than that only wait.
    """
    cores = len(os.sched_getaffinity(0))
    for quota in _quotas(cgroups, own_cgroup):
        cores = min(cores, max(1, -int(-quota // 1)))
    return cores


def _quotas(cgroups: Path, own_cgroup: Path) -> Iterator[float]:
    """Those of this process's group and of the groups around it, in CPUs."""
    for group in _groups(cgroups, own_cgroup):
        yield from _quota(group / "cpu.max")
    quota_us = _numbers(cgroups / "cpu" / "cpu.cfs_quota_us")  # version 1: a container's own
    period_us = _numbers(cgroups / "cpu" / "cpu.cfs_period_us")
    if quota_us and period_us and quota_us[0] > 0 and period_us[0] > 0:
        yield quota_us[0] / period_us[0]


def _groups(cgroups: Path, own_cgroup: Path) -> Iterator[Path]:
    """Of version 2, from the root, which in a container is the container's own."""
    yield cgroups
    group = cgroups
    for line in _lines(own_cgroup):
        if line.startswith("0::/"):
            for name in filter(None, line.removeprefix("0::/").split("/")):
                group = group / name
                yield group


def _quota(path: Path) -> Iterator[float]:
    """Of a line such as ``400000 100000``; none of ``max 100000``."""
    numbers = _numbers(path)
    if len(numbers) == 2 and numbers[1] > 0:
        yield numbers[0] / numbers[1]


def _numbers(path: Path) -> list[int]:
    words = " ".join(_lines(path)).split()
    return [int(word) for word in words if word.lstrip("-").isdecimal()]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):  # no such version, or not for us to see
        return []
