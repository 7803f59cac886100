"""Runs a program to its end, within a deadline."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


def run_program(
    command: Sequence[str], *, timeout_s: float, variables: Mapping[str, str] | None = None
) -> str:
    """Run a program and return what it printed.

    Args:
        command: And its arguments.
        timeout_s: After which it is killed.
        variables: For it, besides ours.

    Raises:
        OSError: It cannot be started, fails or takes longer; the message has its last line.
    """
    name = Path(command[0]).name
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=max(timeout_s, 0),
            check=False,
            env={**os.environ, **(variables or {})},
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"{name} had not ended after {timeout_s:.0f} s") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        raise OSError(f"{name} ended with {done.returncode}: {said[-1]}")
    return done.stdout
