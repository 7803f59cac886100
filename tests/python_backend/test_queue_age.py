"""How long requests wait for the tokenizer: asked for while it works, and known within a moment."""

import http.client
import http.server
import json
import threading
import time
from typing import ClassVar

import pytest
from bertron_backend import queue_age
from bertron_backend.queue_age import PERIOD_S, QueueAge, Waits, statistics_of

DEADLINE_S = 20


class Sums:
    """A server's statistics, of a queue whose every request waits as long as it is told."""

    def __init__(self):
        self.requests = self.waited_ns = self.asked = 0
        self.failure = None

    def take(self, count, waited_us):
        self.requests += count
        self.waited_ns += count * waited_us * 1000

    def __call__(self):
        self.asked += 1
        if self.failure is not None:
            raise self.failure
        return Waits(self.requests, self.waited_ns)


@pytest.fixture
def sums():
    return Sums()


@pytest.fixture
def age(sums):
    age = QueueAge(sums)
    yield age
    age.stop()
    assert not age._thread.is_alive()


def work_until(age, sums, waited_us, is_reached):
    """Requests one after the other, each of which waited so long."""
    deadline = time.monotonic() + DEADLINE_S
    while not is_reached():
        assert time.monotonic() < deadline, age.us
        with age.working():
            time.sleep(0.005)
        sums.take(1, waited_us)


def test_the_age_is_that_of_the_last_requests(age, sums):
    assert age.us == 0
    for waited_us in (700_000, 2_000, 300):
        work_until(age, sums, waited_us, lambda waited_us=waited_us: age.us == waited_us)


def test_a_model_that_hardly_works_asks_nobody(age, sums):
    deadline = time.monotonic() + 4 * PERIOD_S
    while time.monotonic() < deadline:
        with age.working():
            pass
        sums.take(1, 10**6)
        time.sleep(0.01)
    assert (age.us, sums.asked) == (0, 0)


def test_a_queue_that_has_gone_is_forgotten(age, sums):
    work_until(age, sums, 10**6, lambda: age.us == 10**6)
    deadline = time.monotonic() + DEADLINE_S
    while age.us:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    "failure",
    [
        OSError("gone"),
        http.client.IncompleteRead(b""),
        ValueError("no JSON"),
        KeyError("queue"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_what_cannot_be_asked_is_not_known(age, sums, failure):
    work_until(age, sums, 10**6, lambda: age.us == 10**6)
    sums.failure = failure
    work_until(age, sums, 10**6, lambda: age.us == 0)
    sums.failure = None
    work_until(age, sums, 10**6, lambda: age.us == 10**6)


@pytest.fixture
def server():
    class Handler(http.server.BaseHTTPRequestHandler):
        answers: ClassVar[list[bytes]] = []

        def do_GET(self):
            assert self.path == "/v2/models/a_tokenizer/stats"
            assert self.headers["Connection"] == "close"  # an idle one would hold up a stop
            body = self.answers.pop(0)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield Handler.answers, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(DEADLINE_S)


def stats(*queues):
    model_stats = [
        {"inference_stats": {"queue": {"count": count, "ns": ns}}} for count, ns in queues
    ]
    return json.dumps({"model_stats": model_stats}).encode()


def test_the_servers_statistics_are_read_whatever_it_answered_before(server):
    answers, url = server
    read = statistics_of("a_tokenizer", url)
    answers += [stats((3, 5000)), b"no JSON", b'{"error": "unknown"}', stats((3, 5000), (1, 70))]
    assert read() == Waits(3, 5000)
    with pytest.raises(ValueError, match="Expecting value"):
        read()
    with pytest.raises(KeyError):
        read()
    assert read() == Waits(4, 5070)


def test_a_server_that_is_not_there_is_an_error_at_once():
    read = statistics_of("a_tokenizer", "http://127.0.0.1:9")
    with pytest.raises(OSError, match="refused"):
        read()


def test_nobody_is_watched_where_nobody_said_where(monkeypatch):
    monkeypatch.delenv(queue_age.URL_VARIABLE, raising=False)
    assert queue_age.watched("tokenizer") is None
    monkeypatch.setenv(queue_age.URL_VARIABLE, "http://127.0.0.1:9")
    age = queue_age.watched("tokenizer")
    age.stop()
