"""A client on both sides of a fork, as web servers and data loaders have it."""

import os
import subprocess
import sys
from pathlib import Path

import forked_client
import pytest

CASES = [
    ("http", "sync", "os.fork"),
    ("http", "sync", "multiprocessing"),
    ("http", "threads", "multiprocessing"),  # over gRPC such a fork can itself wait for ever
    ("http", "async", "os.fork"),
    ("http", "running-loop", "os.fork"),
    ("http", "running-loop", "multiprocessing"),
    ("grpc", "sync", "os.fork"),
    ("grpc", "sync", "multiprocessing"),
    ("grpc", "async", "os.fork"),
    ("grpc", "async-closed", "multiprocessing"),
    ("grpc", "running-loop", "multiprocessing"),
]
# In the child of such a fork gRPC does not work, and the client says so.
HOPELESS = {("grpc", "async"), ("grpc", "running-loop")}


@pytest.mark.parametrize(("protocol", "kind", "how"), CASES)
def test_a_client_works_on_both_sides_of_a_fork(server, protocol, kind, how):
    program = Path(forked_client.__file__)
    done = subprocess.run(
        [sys.executable, program, server.url(protocol), kind, how],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(program.parent), *sys.path])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if (protocol, kind) in HOPELESS:
        assert done.returncode != 0
        assert "RuntimeError: this process was forked while" in done.stderr
        assert "AssertionError" not in done.stderr
    else:
        assert done.returncode == 0, done.stderr


def test_a_fork_during_a_call_over_grpc_is_noticed():
    program = """
import os
from bertron_client._transports.grpc_channel import FORK_GUARD

def child_can_use_grpc():
    pid = os.fork()
    if pid == 0:
        try:
            FORK_GUARD.begin()
        except RuntimeError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0

assert child_can_use_grpc()
with FORK_GUARD:
    assert not child_can_use_grpc()
assert child_can_use_grpc()
"""
    subprocess.run([sys.executable, "-c", program], timeout=60, check=True)
