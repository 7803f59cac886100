from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bertron_server.stub_processes import Stub, running_stubs

SLEEPER = "import time\ntime.sleep(60)\n"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts a process that is called like a stub, leader of a group of its own."""
    program = tmp_path / "triton_python_backend_stub"
    program.symlink_to(sys.executable)
    started: list[subprocess.Popen[bytes]] = []

    def begin(model_file: Path, program: Path = program) -> subprocess.Popen[bytes]:
        model_file.parent.mkdir(parents=True, exist_ok=True)
        model_file.write_text(SLEEPER)
        process = subprocess.Popen([program, model_file, "region"], start_new_session=True)
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


def stubs_of(pid: int) -> list[Stub]:
    """Once the process has become its program."""
    deadline = time.monotonic() + 5
    while not (found := running_stubs(pid)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def test_it_is_found_by_its_group_and_named_by_its_model(
    start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    process = start(tmp_path / "news_bert" / "1" / "model.py")
    other = start(tmp_path / "tokenizer" / "1" / "model.py")
    (stub,) = stubs_of(process.pid)
    assert (stub.pid, stub.model) == (process.pid, "news_bert")
    assert [stub.model for stub in stubs_of(other.pid)] == ["tokenizer"]


def test_another_program_is_none(
    start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    process = start(tmp_path / "bert" / "1" / "model.py", Path(sys.executable))
    time.sleep(0.2)
    assert running_stubs(process.pid) == []


@pytest.mark.parametrize("is_waited_for", [False, True])
def test_one_that_is_killed_has_ended_though_nobody_waits_for_it(
    start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path, is_waited_for: bool
) -> None:
    process = start(tmp_path / "bert" / "1" / "model.py")
    (stub,) = stubs_of(process.pid)
    assert not stub.has_ended()
    os.kill(process.pid, signal.SIGSTOP)  # it stands still, and is there
    assert not stub.has_ended()
    os.kill(process.pid, signal.SIGKILL)
    if is_waited_for:
        process.wait()
    deadline = time.monotonic() + 5
    while not stub.has_ended():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert running_stubs(process.pid) == []


def test_a_later_process_with_its_id_is_another() -> None:
    assert Stub(os.getpid(), started=1, model="bert").has_ended()
