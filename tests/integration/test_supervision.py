"""`bertron serve` while a model's process is killed or stands still, and under too much load.

Nobody may wait beyond the own deadline, and it must serve again soon, with the same answers.
"""

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from bertron_client import BertronError, Client
from bertron_server.stub_processes import running_stubs
from real_server import MODEL_REPOSITORY, TEXTS

NOTICED_WITHIN_S = 5.0
SERVES_AGAIN_WITHIN_S = 20.0
CALL_TIMEOUT_S = 10.0
FREE_PORTS = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")


class Serving:
    """A running `bertron serve`, and when it said what."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "bertron_server.cli", "serve", *FREE_PORTS, *arguments]
        command += ["--model-repository", str(MODEL_REPOSITORY)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.said: list[str] = []
        self._lines: queue.Queue[tuple[float, str]] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.http_url = self.grpc_url = ""

    def wait_until_ready(self) -> None:
        banner = self.wait_for("HTTP")[1] + self.wait_for("gRPC")[1]
        self.http_url, self.grpc_url = re.findall(r"\w+://\S+", banner)
        self.wait_for("Ctrl-C")

    @property
    def server_pid(self) -> int:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        (pid,) = map(int, children.split())
        return pid

    def stub_pid(self, model: str) -> int:
        (pid,) = [stub.pid for stub in running_stubs(self.server_pid) if stub.model == model]
        return pid

    def wait_for(self, words: str, timeout_s: float = 60) -> tuple[float, str]:
        """When the next line with these words came, and the line."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                when, line = self._lines.get(timeout=max(deadline - time.monotonic(), 0))
            except queue.Empty:
                raise AssertionError(f"no {words!r} in {self.said}") from None
            if words in line:
                return when, line

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.said.append(line)
                self._lines.put((time.monotonic(), line))


@contextlib.contextmanager
def serving(*arguments: str) -> Iterator[Serving]:
    started = Serving(*arguments)
    try:
        started.wait_until_ready()
        yield started
        assert started.process.poll() is None, started.said
        started.process.terminate()
        assert started.process.wait(60) == 0, started.said
    finally:
        started.kill()


@dataclass
class Callers:
    """Clients that ask one after the other until they are told to stop.

    Attributes:
        took: Seconds of each call.
        answered: When each right answer came, monotonic.
        errors: What the others ended with.
        copies: Of the text, in each call.
        wrong: Answers that were not the known ones.
    """

    known: np.ndarray
    took: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    wrong: int = 0
    copies: int = 1
    stopping: threading.Event = field(default_factory=threading.Event)

    def ask(self, url: str, index: int) -> None:
        with Client(url, timeout_s=CALL_TIMEOUT_S) as client:
            while not self.stopping.is_set():
                row = index % len(TEXTS)
                index += 1
                started = time.monotonic()
                try:
                    vector = np.asarray(client.embed([TEXTS[row]] * self.copies))[-1]
                except BertronError as error:
                    self.errors.append(str(error))
                    time.sleep(0.05)
                else:
                    self.answered.append(time.monotonic())
                    self.wrong += not np.allclose(vector, self.known[row], atol=1e-5)
                self.took.append(time.monotonic() - started)


@contextlib.contextmanager
def callers(served: Serving, known: np.ndarray, number: int, copies: int = 1) -> Iterator[Callers]:
    asking = Callers(known, copies=copies)
    urls = (served.http_url, served.grpc_url)
    threads = [
        threading.Thread(target=asking.ask, args=(urls[index % 2], index))
        for index in range(number)
    ]
    for thread in threads:
        thread.start()
    try:
        yield asking
    finally:
        asking.stopping.set()
        for thread in threads:
            thread.join(2 * CALL_TIMEOUT_S)
        assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("model", ["bert", "tokenizer"])
def test_a_killed_process_is_noticed_and_it_serves_again(model, known):
    with serving() as served, callers(served, known, 8) as asking:
        time.sleep(1)
        killed = time.monotonic()
        os.kill(served.stub_pid(model), signal.SIGKILL)
        noticed, _ = served.wait_for(f"failed: the process of model {model} ended")
        served.wait_for("Ctrl-C")
        ready = time.monotonic()
        time.sleep(2)
    assert noticed - killed < NOTICED_WITHIN_S
    again = min(when for when in asking.answered if when > ready)
    assert again - killed < SERVES_AGAIN_WITHIN_S
    assert sum(when > ready for when in asking.answered) > 20
    assert max(asking.took) < CALL_TIMEOUT_S + 1
    assert asking.wrong == 0


def test_one_that_stands_still_is_noticed_too(known):
    with serving() as served:
        stopped = time.monotonic()
        os.kill(served.stub_pid("bert"), signal.SIGSTOP)
        noticed, _ = served.wait_for("failed: text_embedding fails: ")
        assert noticed - stopped < 20  # a text of its own every ten seconds, and twice an error
        served.wait_for("Ctrl-C")
        with Client(served.grpc_url) as client:
            assert np.allclose(np.asarray(client.embed(TEXTS)), known, atol=1e-5)


def test_a_server_with_too_much_to_do_is_left_alone(known):
    """A text waits longer than the limit and than two looks, and others get answers meanwhile."""
    with serving("--stall-timeout-s", "1") as served:
        with callers(served, known, 32, copies=64) as asking:
            time.sleep(20)
        assert not any("failed" in line for line in served.said), served.said
    assert asking.wrong == 0
    assert len(asking.answered) > 20
