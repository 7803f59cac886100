"""Locust's users. In a closed loop each asks, checks the answer and asks again.

In an open loop calls arrive at random times, whether those before are answered or not: a user is
then a Poisson process of ``--calls-per-user-s``, and N users are one of N times that rate. So a
shape, the web page and several workers set a rate just as they set a number of users.

Importing locust replaces the standard sockets and threads by gevent's; the SDK does not mind, and
gRPC has to be told.
"""

import gc
import random
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gevent
import grpc.experimental.gevent
import numpy as np
from gevent.pool import Group
from locust import User, events, task
from locust.exception import StopUser
from locust.runners import MasterRunner, WorkerRunner
from locust.user.task import LOCUST_STATE_STOPPING, LOCUST_STATE_WAITING

from bertron_loadtest.answers import MIN_COSINE, AnswerCheck, KnownVectors
from bertron_loadtest.callers import Caller, open_caller, outcome_of
from bertron_loadtest.recorder import Recorder, describe
from bertron_loadtest.samples import Outcome, Sample
from bertron_loadtest.workload import (
    BERT_AS_SERVICE_TOKENS,
    SAMPLE_TEXTS,
    WORKLOADS,
    Workload,
    make_workload,
)

grpc.experimental.gevent.init_gevent()

LOOPS = ("closed", "open")
MOST_IN_FLIGHT = 4000  # calls of one process in an open loop; beyond it arrivals are not sent
# Under gevent a gRPC call waits for its answer in a thread of this pool, and a host is looked up in
# one. Of gevent's 10 the calls in flight take all: answers are then read late, and connections to
# HTTP wait for seconds to be begun.
gevent.get_hub().threadpool.maxsize = MOST_IN_FLIGHT + 64
_LATE_S = 0.5  # beyond the deadline: what a client takes to see that its own is over
_LONGEST_SLEEP_S = 0.2  # between two looks at whether the run is over

recorder = Recorder()


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--grpc-url", default="grpc://127.0.0.1:8001", help="for gRPC users")
    parser.add_argument("--http-url", default="http://127.0.0.1:8000", help="for HTTP users")
    parser.add_argument("--model", default="text_embedding", help="name of the served model")
    parser.add_argument("--workload", choices=WORKLOADS, default="short")
    parser.add_argument("--texts", default="", help="file with a text a line; empty: our sample")
    parser.add_argument("--texts-a-call", default="", help="1,8,32; empty: the workload's own")
    parser.add_argument(
        "--tokens", type=int, default=BERT_AS_SERVICE_TOKENS, help="of a text in bert-as-service"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the workload")
    parser.add_argument("--loop", choices=LOOPS, default="closed")
    parser.add_argument(
        "--calls-per-user-s", type=float, default=1.0, help="of a user in an open loop"
    )
    parser.add_argument("--timeout-s", type=float, default=30.0, help="of each call")
    parser.add_argument("--known-vectors", default="", help=".npz; empty: asked for at the start")
    parser.add_argument("--min-cosine", type=float, default=MIN_COSINE, help="with those")


def parse_sizes(sizes: str) -> list[int] | None:
    """Read ``"1,8,32"``; None for an empty text.

    Raises:
        ValueError: Something else.
    """
    if not sizes:
        return None
    try:
        parsed = [int(size) for size in sizes.split(",")]
    except ValueError:
        parsed = []
    if not parsed or min(parsed) < 1:
        raise ValueError(f"texts a call are {sizes!r}, numbers from 1 with commas are wanted")
    return parsed


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def _prepare(environment: Any, **_: Any) -> None:
    """Make the workload and get the known vectors, before any load.

    What goes wrong ends the run: a shape and the saved run know of it through the recorder.
    """
    recorder.clear()
    if isinstance(environment.runner, MasterRunner):
        return  # it makes no calls
    try:
        EmbedUser.prepare(environment)
        # A full collection looks at every object, 0.06 s in which no call is sent or read: a pause
        # of ours that would be taken for the server's. From now on only at what comes after.
        gc.collect()
        gc.freeze()
        recorder.ready_s = recorder.clock.now()
    except Exception as error:  # Locust logs what a listener raises and goes on
        recorder.problem = describe(error)
        if isinstance(environment.runner, WorkerRunner):
            return  # its master ends the run
        environment.events.request.fire(
            request_type="setup",
            name="known vectors",
            response_time=0,
            response_length=0,
            exception=error,
        )
        environment.runner.quit()


@events.report_to_master.add_listener  # type: ignore[untyped-decorator]
def _report(data: dict[str, Any], **_: Any) -> None:
    data["bertron"] = recorder.drain()


@events.worker_report.add_listener  # type: ignore[untyped-decorator]
def _take(data: dict[str, Any], **_: Any) -> None:
    if "bertron" in data:
        recorder.merge(data["bertron"])


class EmbedUser(User):  # type: ignore[misc] # locust is not typed
    """What all have in common; a subclass names its caller."""

    abstract = True
    caller_name = ""
    workload: Workload
    answer_check: AnswerCheck
    _prefix = ""
    _count = 0
    _in_flight = Group()

    @classmethod
    def prepare(cls, environment: Any) -> None:
        """Set what all users of this process share."""
        options = environment.parsed_options
        cls.workload = EmbedUser.workload = make_workload(
            options.workload,
            seed=options.seed,
            sample=Path(options.texts) if options.texts else SAMPLE_TEXTS,
            texts_a_call=parse_sizes(options.texts_a_call),
            tokens=options.tokens,
        )
        if options.known_vectors:
            known = KnownVectors.load(Path(options.known_vectors))
        else:
            caller = environment.runner.user_classes[0].open_caller(options)
            try:
                known = ask_known(caller, cls.workload.known_texts)
            finally:
                caller.close()
        EmbedUser.answer_check = AnswerCheck(known, options.min_cosine)
        # Each user sends texts of its own, those of another worker too.
        EmbedUser._prefix = str(getattr(environment.runner, "worker_index", ""))
        EmbedUser._count = 0

    @classmethod
    def open_caller(cls, options: Any) -> Caller:
        """Return a caller of this user's kind."""
        urls = {"grpc": options.grpc_url, "http": options.http_url}
        return open_caller(cls.caller_name, urls, options.model, options.timeout_s)

    def on_start(self) -> None:
        """Open this user's caller; it connects with the first call."""
        if recorder.problem:
            raise StopUser
        options = self.environment.parsed_options
        name = f"{self._prefix} {EmbedUser._count}"
        EmbedUser._count += 1
        self._caller = self.open_caller(options)
        self._calls = self.workload.calls(name)
        self._is_open = options.loop == "open"
        self._calls_per_s = options.calls_per_user_s
        self._chance = random.Random(f"{options.seed} arrivals {name}")  # noqa: S311
        self._mine = Group()
        self._next_s = recorder.clock.now()
        self._wait_for_next()

    def stop(self, force: bool = False) -> bool:
        """Stop after the present call; whether the user was killed at once.

        Locust kills a user that waits for its next task. Ours wait for no time, and the kill meets
        those that have gone on meanwhile in the middle of a call, which then never ends.
        """
        if not force and self._state == LOCUST_STATE_WAITING:  # type: ignore[has-type]
            self._state = LOCUST_STATE_STOPPING
            return False
        return bool(super().stop(force))

    def on_stop(self) -> None:
        """Let its calls end, which they do within their deadline, and close it."""
        self._mine.join(timeout=self.environment.parsed_options.timeout_s)
        self._caller.close()

    @task  # type: ignore[untyped-decorator]
    def embed(self) -> None:
        """One call of a closed loop, or the wait for the next arrival of an open one."""
        if not self._is_open:
            self._call(next(self._calls), recorder.clock.now())
            return
        left_s = self._next_s - recorder.clock.now()
        if left_s > 0:
            gevent.sleep(min(left_s, _LONGEST_SLEEP_S))
        if self._next_s <= recorder.clock.now():
            self._arrive()

    def _wait_for_next(self) -> None:
        self._next_s += self._chance.expovariate(self._calls_per_s)

    def _arrive(self) -> None:
        texts, due_s = next(self._calls), self._next_s
        self._wait_for_next()
        if len(EmbedUser._in_flight) >= MOST_IN_FLIGHT:
            recorder.not_sent += 1
            return
        greenlet = gevent.spawn(self._call, texts, due_s)
        self._mine.add(greenlet)
        EmbedUser._in_flight.add(greenlet)

    def _call(self, texts: Sequence[str], due_s: float) -> None:
        """One call, timed without the check of its answer."""
        recorder.sent += 1
        error: Exception | None = None
        tokens = num_bytes = 0
        sent_s = recorder.clock.now()
        try:
            answer = self._caller.embed(texts)
        except Exception as caught:
            error = caught
        latency_s = recorder.clock.now() - due_s
        took_s, timeout_s = latency_s - (sent_s - due_s), self.environment.parsed_options.timeout_s
        if error is None and took_s > timeout_s + _LATE_S:
            error = TimeoutError(f"answered after {took_s:.1f} s, {timeout_s:g} s were allowed")
        if error is None:
            tokens, num_bytes = answer.tokens, answer.vectors.nbytes
            try:
                self.answer_check.check(texts, answer.vectors)
            except Exception as caught:
                error = caught
        outcome = Outcome.RIGHT if error is None else outcome_of(error)
        recorder.samples.append(
            Sample(
                *(due_s, sent_s - due_s, latency_s, self.caller_name, len(texts), tokens),
                *(outcome.value, "" if error is None else describe(error)),
            )
        )
        self.environment.events.request.fire(
            request_type=self.caller_name,
            name=f"{self.workload.name}, {len(texts)} texts",
            response_time=latency_s * 1e3,
            response_length=num_bytes,
            exception=error,
        )


def ask_known(caller: Caller, texts: Sequence[str]) -> KnownVectors:
    """Ask for texts one by one: what a server answers when nothing else is asked of it."""
    rows = [caller.embed([text]).vectors[0] for text in texts]
    return KnownVectors(texts, np.array(rows))


class GrpcUser(EmbedUser):
    """The SDK over gRPC."""

    caller_name = "grpc"


class HttpUser(EmbedUser):
    """The SDK over HTTP."""

    caller_name = "http"


class RawGrpcUser(EmbedUser):
    """tritonclient over gRPC, without the SDK."""

    caller_name = "raw-grpc"


class RawHttpUser(EmbedUser):
    """tritonclient over HTTP, without the SDK."""

    caller_name = "raw-http"


class InfinityUser(EmbedUser):
    """The peer infinity-emb, at ``--http-url``."""

    caller_name = "infinity"
