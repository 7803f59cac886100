"""In a process of its own: importing locust replaces the standard sockets and threads."""

import subprocess
import sys

PREPARED = """
import gc
from types import SimpleNamespace

from bertron_loadtest import users
from locust import events

users.EmbedUser.prepare = classmethod(lambda cls, environment: None)
before = len(gc.get_objects())
events.test_start.fire(environment=SimpleNamespace(runner=None))
assert not users.recorder.problem, users.recorder.problem
print(before, len(gc.get_objects()), gc.get_freeze_count())
"""


def test_no_full_collection_of_what_is_loaded_pauses_the_load():
    """Each would hold up the calls of 0.06 s, and their latencies be taken for the server's."""
    done = subprocess.run(
        [sys.executable, "-c", PREPARED], capture_output=True, text=True, timeout=60, check=True
    )
    before, looked_at, left_out = map(int, done.stdout.split())
    assert before > 50_000
    assert looked_at < 1000
    assert left_out > 50_000
