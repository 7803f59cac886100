from __future__ import annotations

import contextlib
import http.client
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bertron_server.server import TritonServer

ECHO_CONFIG = """
name: "{name}"
backend: "python"
max_batch_size: 8
input [ {{ name: "TEXT" data_type: TYPE_STRING dims: [ 1 ] }} ]
output [ {{ name: "ECHO" data_type: TYPE_STRING dims: [ 1 ] }} ]
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
"""

# Answers what it got; the text "slow" only after a second.
ECHO_MODEL = """
import time

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        texts = [pb_utils.get_input_tensor_by_name(r, "TEXT").as_numpy() for r in requests]
        if any(b"slow" in text for text in texts):
            time.sleep(1)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("ECHO", text)]) for text in texts]
"""


def write_model(repository: Path, name: str, code: str = ECHO_MODEL) -> Path:
    version = repository / name / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(code)
    (repository / name / "config.pbtxt").write_text(ECHO_CONFIG.format(name=name))
    return repository


@pytest.fixture
def add_model() -> Callable[..., Path]:
    """Writes a further model into a repository: its name, and its code if it is not to echo."""
    return write_model


@pytest.fixture
def echo_repository(tmp_path: Path) -> Path:
    return write_model(tmp_path / "models", "echo")


@pytest.fixture
def repository_of(tmp_path: Path) -> Callable[[str], Path]:
    """Gives a repository whose one model has the given code."""
    return lambda code: write_model(tmp_path / "models", "faulty", code)


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """One server with one model for all tests that only ask."""
    repository = write_model(tmp_path_factory.mktemp("running") / "models", "echo")
    with TritonServer(repository) as server:
        yield server


class ProcessTable:
    """What /proc knows: a test must not depend on the code that it tests."""

    def group(self, leader: int) -> list[int]:
        """Living processes of a process group."""
        pids = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _parent, group = stat.read_text().rpartition(")")[2].split()[:3]
            except OSError:
                continue
            if int(group) == leader and state != "Z":
                pids.append(int(stat.parent.name))
        return pids

    def regions(self, pid: int) -> str:
        """The glob of a server's shared memory."""
        arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        prefixes = [re.search(r"shm-region-prefix-name=(.+)", argument) for argument in arguments]
        return next(match[1] for match in prefixes if match) + "*"

    def wait_until_gone(self, leader: int, timeout_s: float) -> list[int]:
        """What is left of a group after at most ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while (left := self.group(leader)) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left


@pytest.fixture
def bertron_to() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command with a redirection of the shell, such as ``>&-``, and then its arguments."""

    def run(redirection: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "bertron_server.cli", *map(str, arguments)]
        shell = ["sh", "-c", f'exec "$@" {redirection}', "sh"]
        return subprocess.run([*shell, *command], capture_output=True, text=True, timeout=60)

    return run


@pytest.fixture
def proc() -> ProcessTable:
    return ProcessTable()


@pytest.fixture
def echo() -> Callable[..., str]:
    """Asks an echo model over HTTP."""

    def ask(http_url: str, text: str, model: str = "echo", timeout_s: float = 10) -> str:
        tensor = {"name": "TEXT", "shape": [1, 1], "datatype": "BYTES", "data": [text]}
        connection = http.client.HTTPConnection(http_url.removeprefix("http://"), timeout=timeout_s)
        with contextlib.closing(connection):
            body = json.dumps({"inputs": [tensor]}).encode()
            connection.request("POST", f"/v2/models/{model}/infer", body, {"Connection": "close"})
            answer = json.loads(connection.getresponse().read())
        return answer["outputs"][0]["data"][0]

    return ask
