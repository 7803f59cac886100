"""Where and with what a run was made: figures without it say little."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

_PACKAGES = ("bertron", "locust", "numpy", "tritonclient", "torch", "triton", "tokenizers")
_GIT_TIMEOUT_S = 10


def describe_setting() -> dict[str, str]:
    """Return machine, date, commit and versions."""
    setting = {
        "date": datetime.datetime.now(tz=datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"{_cpu()}, {len(os.sched_getaffinity(0))} cores",
        "system": platform.platform(),
        "Python": platform.python_version(),
    }
    for name in _PACKAGES:
        try:
            setting[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit = _commit()
    return setting | ({"commit": commit} if commit else {})


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _commit() -> str:
    """The checkout's commit, and whether the tree was it; "" outside of one."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
