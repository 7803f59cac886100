"""A client on both sides of a fork, as web servers and data loaders have it."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import forked_client
import pytest
from bertron_client import Client
from bertron_client.testing import MockTransport

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


def test_no_thread_of_a_child_uses_what_is_the_parents():
    """As if in a child: the first thread has yet to let go of it when the second comes."""
    forgotten, performed = [], []

    class Transport(MockTransport):
        def forget(self):
            time.sleep(0.2)
            forgotten.append(time.monotonic())

        def perform(self, operation, call):
            performed.append(time.monotonic())
            return super().perform(operation, call)

    with Client("http://mock", transport=Transport()) as client:
        client._process_id = -1
        threads = [threading.Thread(target=client.server_info) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(forgotten) == 1
    assert performed
    assert min(performed) >= forgotten[0]


def test_a_stream_stays_in_the_process_that_began_it(server):
    """A child that asks for the next row is told so, and one that does not want it does no harm."""
    program = """
import os, signal, sys
from bertron_client import Client, RetryPolicy

def child(rows, is_left):
    signal.alarm(20)
    if is_left:
        rows.close()
        return
    try:
        next(rows)
    except RuntimeError as error:
        assert "was forked from the one that began the stream" in str(error)
    else:
        raise AssertionError("a row came")

with Client(sys.argv[1], retry=RetryPolicy(max_retries=0)) as client:
    rows = client.embed_iter(str(i) for i in range(400))
    next(rows)
    for is_left in (False, True):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                child(rows, is_left)
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0, is_left
    assert sum(1 for _ in rows) == 399
"""
    server.behaviour.delay_s = 0.1  # so that requests are under way while it forks
    done = subprocess.run(
        [sys.executable, "-c", program, server.http_url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
