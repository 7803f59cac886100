"""The limit that a process gets, whatever it was started with."""

import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from bertron_server import descriptors

PRINT_LIMIT = """
import resource, subprocess, sys
print("ready", flush=True)
sys.stdin.readline()
code = "import resource; print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
subprocess.run([sys.executable, "-c", code], check=True)
"""


@contextmanager
def process_with(soft: int, hard: int) -> Iterator[tuple[int, Callable[[], str]]]:
    """A process, and what its own child has when it is asked."""
    limit = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
    with subprocess.Popen(
        [sys.executable, "-c", PRINT_LIMIT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=limit,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process.pid, lambda: process.communicate("\n", timeout=30)[0].strip()


@pytest.mark.parametrize(
    ("soft", "hard", "expected"),
    [
        (256, 900, "900 900"),
        (900, 900, "900 900"),
        (256, 2000, "1000 2000"),
        (1500, 2000, "1500 2000"),
    ],
)
def test_a_process_may_have_as_many_as_its_hard_limit_allows(
    soft: int, hard: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descriptors, "MOST", 1000)
    with process_with(soft, hard) as (pid, asked):
        descriptors.allow_many(pid)
        assert asked() == expected


def test_a_process_that_has_ended_is_left_alone() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait(30)
    descriptors.allow_many(process.pid)
