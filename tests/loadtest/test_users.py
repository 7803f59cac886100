"""In a process of its own: importing locust replaces the standard sockets and threads."""

import subprocess
import sys

import pytest

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


CALLED = """
import sys
from types import SimpleNamespace

import numpy as np
from bertron_loadtest import users

now = iter([10.0, 13.0])
users.recorder.clock = SimpleNamespace(now=lambda: next(now))
user = users.EmbedUser.__new__(users.EmbedUser)
answer = SimpleNamespace(vectors=np.ones((1, 2), np.float32), tokens=3)
user._caller = SimpleNamespace(embed=lambda texts: answer)
user.answer_check = SimpleNamespace(check=lambda texts, vectors: None)
user.caller_name, user.workload = "raw-grpc", SimpleNamespace(name="short")
events = SimpleNamespace(request=SimpleNamespace(fire=lambda **facts: None))
options = SimpleNamespace(timeout_s=float(sys.argv[1]))
user.environment = SimpleNamespace(events=events, parsed_options=options)
user._call(["a"], 10.0)
(sample,) = users.recorder.samples
print(sample.outcome, sample.error)
"""


@pytest.mark.parametrize(("timeout_s", "outcome"), [(3, "right"), (2.8, "right"), (2, "timed_out")])
def test_an_answer_long_after_the_deadline_is_none(timeout_s, outcome):
    """Some callers' timeouts are of each read, or of each of several requests."""
    done = subprocess.run(
        [sys.executable, "-c", CALLED, str(timeout_s)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split()[:1] == [outcome], done.stderr


STOPPED_BETWEEN_CALLS = """
import itertools
from types import SimpleNamespace

import gevent
import numpy as np
from bertron_loadtest import users
from gevent.event import AsyncResult
from gevent.pool import Group
from locust.env import Environment

pending = []


def embed(texts):
    pending.append(AsyncResult())
    return pending[-1].get()


def answer_all():
    while pending:
        pending.pop().set(SimpleNamespace(vectors=np.ones((1, 2), np.float32), tokens=3))


class Asking(users.EmbedUser):
    caller_name = "raw-grpc"

    def on_start(self):
        self._caller = SimpleNamespace(embed=embed, close=lambda: None)
        self._calls, self._is_open, self._mine = itertools.repeat(["a"]), False, Group()


users.EmbedUser.workload = SimpleNamespace(name="short")
users.EmbedUser.answer_check = SimpleNamespace(check=lambda texts, vectors: None)
environment = Environment(user_classes=[Asking], parsed_options=SimpleNamespace(timeout_s=5))
group = Group()
asking = [Asking(environment) for _ in range(8)]
for user in asking:
    user.start(group)
while len(pending) < len(asking):
    gevent.sleep(0.01)
answer_all()
while not all(user._state == "waiting" for user in asking):
    gevent.sleep(0)
for user in asking:
    user.stop(force=False)
for _ in range(10):
    gevent.sleep(0.01)
    answer_all()
assert group.join(timeout=5)
print(users.recorder.sent, len(users.recorder.samples))
"""


def test_users_that_are_stopped_between_two_calls_leave_none_behind():
    done = subprocess.run(
        [sys.executable, "-c", STOPPED_BETWEEN_CALLS], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["8", "8"], done.stderr
