from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from bertron_server import signs_of_life
from bertron_server.signs_of_life import LOOK_EVERY_S, SignsOfLife

GOOD = (200, b'{"outputs":[{"name":"EMBEDDING","data":[0.5,-0.5]}]}')
STALL_S = 60.0


class Server:
    """What a server would say; `probes` are the texts that it was asked to embed."""

    def __init__(self) -> None:
        self.answered: int | None = 0
        self.answer: tuple[int, bytes] | Exception = GOOD
        self.probes: list[str] = []
        self.may_answer = threading.Event()
        self.may_answer.set()

    def ask(self, path: str, body: bytes | None, timeout_s: float) -> tuple[int, bytes]:
        assert timeout_s > 0
        if body is None:
            assert path == "/v2/models/text_embedding/stats"
            if self.answered is None:
                raise TimeoutError("timed out")
            versions = [{"inference_stats": {"success": {"count": self.answered}}}]
            return 200, json.dumps({"model_stats": versions}).encode()
        assert path == "/v2/models/text_embedding/infer"
        self.probes += json.loads(body)["inputs"][0]["data"]
        assert self.may_answer.wait(30)
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer[0] == 200 and self.answered is not None:
            self.answered += 1
        return self.answer


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.may_answer.set()


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, for as long as the test lasts: one number, to be changed."""
    now = [100.0]
    monkeypatch.setattr(signs_of_life.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def signs(server: Server, now: list[float]) -> SignsOfLife:
    assert now
    return SignsOfLife(server.ask, "text_embedding", STALL_S)


@pytest.fixture
def step(server: Server, signs: SignsOfLife, now: list[float]) -> Callable[..., str | None]:
    """Lets time pass, lets a probe end that may, and looks."""

    def pass_and_look(seconds: float = LOOK_EVERY_S) -> str | None:
        now[0] += seconds
        fault = signs.look()
        deadline = time.perf_counter() + 5
        while server.may_answer.is_set() and any(
            thread.name == "probe" for thread in threading.enumerate()
        ):
            assert time.perf_counter() < deadline
            time.sleep(0.001)
        return fault

    return pass_and_look


def test_an_idle_server_is_asked_every_other_time(
    server: Server, step: Callable[..., str | None]
) -> None:
    assert [step() for _ in range(40)] == [None] * 40
    assert 18 <= len(server.probes) <= 22


def test_a_busy_server_is_not_asked(server: Server, step: Callable[..., str | None]) -> None:
    server.answered = 7
    step()  # the first count says nothing yet
    asked = len(server.probes)
    for _ in range(40):
        assert server.answered is not None
        server.answered += 1
        assert step() is None
    assert len(server.probes) == asked == 1


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        ((500, b'{"error":"Stub process is not healthy."}'), "Stub process is not healthy"),
        ((200, b'{"outputs":[{"data":[NaN,0.1]}]}'), "NaN"),
        ((200, b'{"outputs":['), "Expecting value"),
        ((502, b""), "status 502"),
        (ConnectionResetError("reset by peer"), "reset by peer"),
        (http.client.RemoteDisconnected(), "RemoteDisconnected"),
        (http.client.IncompleteRead(b""), "IncompleteRead"),  # no OSError, as the others are
    ],
)
def test_two_errors_in_a_row_are_a_fault(
    server: Server,
    step: Callable[..., str | None],
    answer: tuple[int, bytes] | Exception,
    cause: str,
) -> None:
    server.answer, server.answered = answer, None
    faults = [step() for _ in range(3)]
    assert faults[:2] == [None, None]
    assert faults[2] is not None
    assert faults[2].startswith("text_embedding fails: ")
    assert cause in faults[2]


def test_one_error_between_answers_is_none(server: Server, step: Callable[..., str | None]) -> None:
    for _ in range(10):
        server.answer = (500, b"broken")
        assert step() is None
        server.answer = GOOD
        assert [step() for _ in range(3)] == [None] * 3
    assert len(server.probes) >= 20


def test_an_error_is_a_doubt_until_there_is_an_answer(
    server: Server, signs: SignsOfLife, step: Callable[..., str | None]
) -> None:
    server.answer = (500, b"broken")
    step()
    assert not signs.is_in_doubt  # nobody has looked at the answer
    server.answer = GOOD
    step()
    assert signs.is_in_doubt
    step()
    assert not signs.is_in_doubt


@pytest.mark.parametrize("status", [400, 403, 429, 503])
def test_a_refusal_is_a_sign_of_life(
    server: Server, step: Callable[..., str | None], status: int
) -> None:
    server.answer, server.answered = (status, b"no"), None
    assert [step() for _ in range(50)] == [None] * 50


def test_silence_is_a_fault_when_it_has_lasted(
    server: Server, step: Callable[..., str | None]
) -> None:
    server.may_answer.clear()
    for _ in range(1 + round(STALL_S / LOOK_EVERY_S)):
        assert step() is None
    assert step() == "text_embedding has answered nobody for 65 s"
    assert len(server.probes) == 1


def test_a_text_that_waits_while_others_are_answered_is_none(
    server: Server, step: Callable[..., str | None]
) -> None:
    step()
    step()
    server.may_answer.clear()
    step()
    for _ in range(100):
        assert server.answered is not None
        server.answered += 1
        assert step() is None


def test_a_watcher_that_was_stopped_itself_has_seen_no_silence(
    server: Server, step: Callable[..., str | None]
) -> None:
    server.may_answer.clear()
    assert step() is None
    assert step(3600.0) is None  # a container that was paused
    assert step() is None


def test_a_model_that_stands_still_behind_refusals_is_found(
    server: Server, step: Callable[..., str | None]
) -> None:
    """The tokenizer refuses what comes on top of what waits, also before a model that hangs."""
    server.answered, server.answer = 7, (503, b"the server is overloaded")
    faults = [step() for _ in range(20)]
    found = faults.index("text_embedding has answered nobody for 65 s")
    assert faults[:found] == [None] * found


def test_refusals_beside_answers_are_overload(
    server: Server, step: Callable[..., str | None]
) -> None:
    server.answered, server.answer = 7, (503, b"the server is overloaded")
    for number in range(60):
        if number % 3 == 0:  # a slow one, which answers at every third look
            server.answered += 1
        assert step() is None
