"""Locust's users: each sends the workload through a client of its own, as fast as it is answered.

Importing locust replaces the standard sockets and threads by gevent's; the SDK does not mind, and
gRPC has to be told.
"""

import csv
import itertools
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import grpc.experimental.gevent
import numpy as np
from bertron_client import Client
from locust import User, events, task
from locust.stats import PERCENTILES_TO_REPORT, StatsCSV

from bertron_loadtest.workload import (
    SAMPLE_TEXTS,
    AnswerCheck,
    Workload,
    parse_batch_sizes,
    read_texts,
)

grpc.experimental.gevent.init_gevent()

NAME_FORMAT = "embed {} texts"  # report.py reads the number back


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--grpc-url", default="grpc://127.0.0.1:8001", help="for GrpcUser")
    parser.add_argument("--http-url", default="http://127.0.0.1:8000", help="for HttpUser")
    parser.add_argument("--model", default="text_embedding", help="name of the served model")
    parser.add_argument("--texts", default="", help="file with a text a line; empty: our sample")
    parser.add_argument("--batch-sizes", default="1,8,32", help="texts a request, one at random")
    parser.add_argument("--seed", type=int, default=0, help="of the workload")
    parser.add_argument("--request-timeout-s", type=float, default=30.0, help="of each call")


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def _prepare(environment: Any, **_: Any) -> None:
    """Read the workload and take the known vectors, before any load."""
    try:
        EmbedUser.prepare(environment.parsed_options, environment.runner.user_classes[0])
    except Exception as error:  # Locust logs what a listener raises and goes on
        environment.events.request.fire(
            request_type="setup",
            name="known vectors",
            response_time=0,
            response_length=0,
            exception=error,
        )
        environment.runner.quit()


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def _write_final_stats(environment: Any, **_: Any) -> None:
    """Write the CSV files once more: those that Locust keeps up end a second before the run."""
    prefix = environment.parsed_options.csv_prefix
    if not prefix:
        return
    stats = StatsCSV(environment, PERCENTILES_TO_REPORT)
    for name, write in (("stats", stats.requests_csv), ("failures", stats.failures_csv)):
        with Path(f"{prefix}_final_{name}.csv").open("w", newline="", encoding="utf-8") as file:
            write(csv.writer(file))


class EmbedUser(User):  # type: ignore[misc] # locust is not typed
    """One closed loop: ask, check the answer, ask again."""

    abstract = True
    protocol = ""
    workload: Workload
    answer_check: AnswerCheck
    _numbers = itertools.count()

    @classmethod
    def prepare(cls, options: Any, user_class: "type[EmbedUser]") -> None:
        """Set what all users share, with one client of ``user_class``'s protocol."""
        texts_path = Path(options.texts) if options.texts else SAMPLE_TEXTS
        sizes = parse_batch_sizes(options.batch_sizes)
        EmbedUser.workload = Workload(read_texts(texts_path), sizes, options.seed)
        texts = cls.workload.known_texts
        with user_class.open_client(options) as client:
            rows = [np.asarray(client.embed([text]))[0] for text in texts]
        EmbedUser.answer_check = AnswerCheck(texts, np.array(rows))

    @classmethod
    def open_client(cls, options: Any) -> Client:
        """Return a client for this user's protocol."""
        url = options.grpc_url if cls.protocol == "grpc" else options.http_url
        return Client(url, model=options.model, timeout_s=options.request_timeout_s)

    def on_start(self) -> None:
        """Open this user's client; it connects with the first request."""
        self.client = self.open_client(self.environment.parsed_options)
        self.batches = self.workload.batches(next(self._numbers))

    def on_stop(self) -> None:
        """Close it."""
        self.client.close()

    @task  # type: ignore[untyped-decorator]
    def embed(self) -> None:
        """One request, timed without the check of its answer."""
        texts = next(self.batches)
        error: Exception | None = None
        started = time.perf_counter()
        try:
            answer = self.client.embed(texts)
        except Exception as caught:
            error = caught
        elapsed_ms = (time.perf_counter() - started) * 1e3
        if error is None:
            try:
                self.answer_check.check(texts, answer)
            except Exception as caught:
                error = caught
        self.environment.events.request.fire(
            request_type=self.protocol,
            name=NAME_FORMAT.format(len(texts)),
            response_time=elapsed_ms,
            response_length=0 if error else answer.vectors.nbytes,
            exception=error,
        )


class GrpcUser(EmbedUser):
    """Over gRPC."""

    protocol = "grpc"


class HttpUser(EmbedUser):
    """Over HTTP."""

    protocol = "http"
