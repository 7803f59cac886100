from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from bertron_server import cli, serve
from bertron_server.banner import banner, missing_exports, served_models
from bertron_server.server import TritonServer

SHM = Path("/dev/shm")  # noqa: S108
MANIFEST = {
    "name": "all-MiniLM-L6-v2",
    "architecture": "bert",
    "dtype": "float32",
    "pooling": "mean",
    "normalize": True,
    "embedding_size": 384,
    "limits": {"max_tokens_per_text": 256},
}
ENSEMBLE = """
max_batch_size: 64  # texts in one request
parameters { key: "max_characters_per_text" value { string_value: "100000" } }
"""

SILENT_MODEL = """
import time


class TritonPythonModel:
    def execute(self, requests):
        time.sleep(3600)
"""


@pytest.fixture
def bert_repository(tmp_path: Path) -> Path:
    """The layout that `bertron export` leaves, without models that could load."""
    repository = tmp_path / "model_repository"
    for name in ("bert", "tokenizer", "text_embedding"):
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "config.pbtxt").write_text(f'name: "{name}"\n')
    (repository / "text_embedding" / "config.pbtxt").write_text(ENSEMBLE)
    (repository / "bert" / "1" / "model.pt").touch()
    (repository / "bert" / "1" / "manifest.json").write_text(json.dumps(MANIFEST))
    return repository


def lines_of(repository: Path, devices: dict[str, str] | None = None) -> list[str]:
    return banner(
        model_repository=repository,
        devices=devices or {},
        server_version=(2, 51),
        ready_after_s=6.94,
        urls={"HTTP": "http://127.0.0.1:8000"},
    ).splitlines()


def test_the_banner_says_what_is_served_and_where(bert_repository: Path) -> None:
    lines = lines_of(bert_repository, {"bert": "CPU"})
    assert lines[0].endswith("on Triton server 2.51, ready in 6.9 s")
    assert [line.split(maxsplit=1) for line in lines[1:]] == [
        [
            "model",
            "text_embedding: all-MiniLM-L6-v2 "
            "(bert, float32, mean pooling, length 1) 384 dimensions",
        ],
        ["device", "CPU"],
        ["limits", "256 tokens a text, 100,000 characters a text, 64 texts a request"],
        ["HTTP", "http://127.0.0.1:8000"],
        ["stop", "Ctrl-C"],
    ]


@pytest.mark.parametrize("content", [None, "", "[]", "{", '{"limits": 3}'])
def test_a_manifest_that_cannot_be_read_makes_a_shorter_banner(
    bert_repository: Path, content: str | None
) -> None:
    manifest = bert_repository / "bert" / "1" / "manifest.json"
    manifest.unlink()
    if content is not None:
        manifest.write_text(content)
    assert "  model    text_embedding" in lines_of(bert_repository)


def test_a_further_model_is_known_by_its_own_name(bert_repository: Path) -> None:
    (bert_repository / "reviews_bert").mkdir()
    (bert_repository / "reviews_bert" / "config.pbtxt").touch()
    assert [model.ensemble for model in served_models(bert_repository)] == [
        "text_embedding",
        "reviews",
    ]
    missing = bert_repository / "reviews_bert" / "1" / "model.pt"
    assert missing_exports(bert_repository) == [missing]


def test_a_model_that_is_not_exported_names_the_command(
    bert_repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bert_repository / "bert" / "1" / "model.pt").unlink()
    assert cli.main(["serve", "--model-repository", str(bert_repository)]) == 1
    message = capsys.readouterr().err
    assert "model.pt is missing" in message
    assert f"bertron export CHECKPOINT --model-repository {bert_repository}" in message


def test_a_directory_that_is_no_model_is_named(
    bert_repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Triton server would load nothing beside it, and say so among much else."""
    (bert_repository / "notes").mkdir()
    assert cli.main(["serve", "--model-repository", str(bert_repository)]) == 1
    assert "notes is a directory without config.pbtxt" in capsys.readouterr().err


def test_a_directory_that_may_not_be_entered_is_named(
    bert_repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (bert_repository / "lost+found").mkdir()
    is_file = Path.is_file

    def refused(path: Path) -> bool:
        if path.parent.name == "lost+found":
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refused)
    assert cli.main(["serve", "--model-repository", str(bert_repository)]) == 1
    assert "lost+found is a directory without config.pbtxt" in capsys.readouterr().err


@pytest.mark.integration
def test_the_command_is_printed_ready_to_paste(
    bert_repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["serve", "--model-repository", str(bert_repository), "--http-port", "18123"]
    assert cli.main([*arguments, "--print-command", "--", "--log-verbose=1"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    words = shlex.split(printed)
    assert words[0].startswith("PATH=")
    assert f"--model-repository={bert_repository}" in words
    assert "--http-port=18123" in words
    assert words[-1] == "--log-verbose=1"


@contextmanager
def bertron_serve(repository: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "bertron_server.cli", "serve"]
    command += ["--model-repository", str(repository), *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


FREE_PORTS = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")


def read_until(process: subprocess.Popen[str], pattern: str, timeout_s: float = 30) -> str:
    """What the command printed up to the line with the pattern."""
    assert process.stdout is not None
    watchdog = threading.Timer(timeout_s, process.kill)
    watchdog.start()
    read = ""
    try:
        for line in process.stdout:
            read += line
            if re.search(pattern, line):
                return read
    finally:
        watchdog.cancel()
        watchdog.join()
    raise AssertionError(f"no line with {pattern!r} in:\n{read}")


def wait_until_it_answers(echo: Callable[..., str], url: str, timeout_s: float = 30) -> None:
    """Return when an echo model embeds behind ``url``; fail with the last error after that time."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            assert echo(url, "hello") == "hello"
        except (OSError, http.client.HTTPException, LookupError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def server_of(process: subprocess.Popen[str]) -> int:
    """The process id of the command's tritonserver."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 1
    return int(children[0])


@pytest.mark.integration
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_stops_it_cleanly(
    echo_repository: Path, echo: Callable[..., str], proc: Any, number: signal.Signals
) -> None:
    with bertron_serve(echo_repository, *FREE_PORTS, "--exit-timeout-s", "10") as process:
        said = read_until(process, "Ctrl-C")
        url = re.search(r"http://127\.0\.0\.1:\d+", said)
        assert url is not None
        assert echo(url[0], "hello") == "hello"
        server = server_of(process)
        regions = proc.regions(server)
        process.send_signal(number)
        out, log = process.communicate(timeout=15)
        assert process.returncode == 0, log
        assert out.splitlines()[-1] == "stopped"
        assert "Started HTTPService" in log  # the server's own log, on stderr
        assert "Traceback" not in log
        assert proc.group(server) == []
        assert list(SHM.glob(regions)) == []


@pytest.mark.integration
def test_a_signal_while_it_loads_stops_it_too(
    repository_of: Callable[[str], Path], proc: Any
) -> None:
    repository = repository_of("import time\ntime.sleep(120)\n")
    with bertron_serve(repository, *FREE_PORTS, "--exit-timeout-s", "3") as process:
        read_until(process, "loading faulty")
        time.sleep(1)
        server = server_of(process)
        process.terminate()
        _, log = process.communicate(timeout=15)
        assert process.returncode == 0, log
        assert proc.group(server) == []


@pytest.mark.integration
def test_a_second_signal_kills(echo_repository: Path, proc: Any) -> None:
    with bertron_serve(echo_repository, *FREE_PORTS) as process:
        read_until(process, "Ctrl-C")
        server = server_of(process)
        os.kill(server, signal.SIGSTOP)  # a server that does not come to an end
        process.terminate()
        read_until(process, "stopping")
        process.terminate()
        out, log = process.communicate(timeout=15)
        assert process.returncode == 1, log
        assert "killed" in out
        assert proc.group(server) == []


@pytest.mark.integration
def test_a_stop_that_takes_too_long_is_no_clean_one(echo_repository: Path, proc: Any) -> None:
    with bertron_serve(echo_repository, *FREE_PORTS, "--exit-timeout-s", "0") as process:
        read_until(process, "Ctrl-C")
        server = server_of(process)
        os.kill(server, signal.SIGSTOP)
        process.terminate()
        out, log = process.communicate(timeout=15)
        assert process.returncode == 1, log
        assert "killed" in out
        assert proc.group(server) == []


@pytest.mark.integration
@pytest.mark.parametrize("restarts", [0, 2])
def test_a_server_that_dies_once_too_often_is_a_failure_with_its_cause(
    echo_repository: Path, restarts: int
) -> None:
    limit = ("--max-restarts", str(restarts))
    with bertron_serve(echo_repository, *FREE_PORTS, *limit) as process:
        for _ in range(1 + restarts):
            read_until(process, "Ctrl-C")
            os.kill(server_of(process), signal.SIGKILL)
        _, log = process.communicate(timeout=15)
        assert process.returncode == 1
        assert "bertron serve: the server ended by itself" in log
        assert "SIGKILL" in log
        assert ("2 restarts in 10 minutes have not helped" in log) == (restarts > 0)


@pytest.mark.integration
def test_a_server_that_fails_for_good_is_not_waited_for(echo_repository: Path, proc: Any) -> None:
    with bertron_serve(echo_repository, *FREE_PORTS, "--max-restarts", "0") as process:
        url = re.findall(r"http://(\S+)", read_until(process, "Ctrl-C"))[0]
        server = server_of(process)
        (stub,) = [pid for pid in proc.group(server) if pid != server]
        with contextlib.closing(http.client.HTTPConnection(url)) as idle:
            idle.request("GET", "/v2/health/ready")
            idle.getresponse().read()  # the connection stays open, and Triton server waits for it
            os.kill(stub, signal.SIGKILL)
            _, log = process.communicate(timeout=15)  # the exit timeout is 30 s
        assert process.returncode == 1
        assert log.endswith(f"bertron serve: the process of model echo ended, pid {stub}\n")
        assert proc.group(server) == []


@pytest.mark.integration
def test_a_reader_who_goes_away_stops_nothing(
    echo_repository: Path, echo: Callable[..., str], proc: Any
) -> None:
    with bertron_serve(echo_repository, *FREE_PORTS) as process:
        url = re.findall(r"http://\S+", read_until(process, "Ctrl-C"))[0]
        assert process.stdout is not None
        process.stdout.close()
        first = server_of(process)
        os.kill(first, signal.SIGKILL)  # it has a restart to tell of
        assert proc.wait_until_gone(first, timeout_s=15) == []
        wait_until_it_answers(echo, url)
        process.terminate()
        _, log = process.communicate(timeout=15)
        assert process.returncode == 0, log
        assert "Traceback" not in log


@pytest.mark.integration
def test_without_a_stdout_it_serves_too(echo_repository: Path, echo: Callable[..., str]) -> None:
    with TritonServer(echo_repository) as server:  # whose ports are free in a moment
        ports = ["--http-port", str(server.http_port), "--grpc-port", str(server.grpc_port)]
        url = server.http_url
    command = [sys.executable, "-m", "bertron_server.cli", "serve", "--metrics-port", "0"]
    command += ["--model-repository", str(echo_repository), *ports]
    with subprocess.Popen(
        ["sh", "-c", 'exec "$@" >&-', "sh", *command], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            wait_until_it_answers(echo, url)
            process.terminate()
            _, log = process.communicate(timeout=15)
        finally:
            process.kill()
    assert process.returncode == 0, log
    assert "Traceback" not in log


@pytest.mark.integration
def test_a_server_that_dies_comes_back_where_it_was(
    echo_repository: Path, echo: Callable[..., str], proc: Any
) -> None:
    with bertron_serve(echo_repository, *FREE_PORTS) as process:
        urls = re.findall(r"\w+://\S+", read_until(process, "Ctrl-C"))
        first = server_of(process)
        regions = proc.regions(first)
        os.kill(first, signal.SIGKILL)
        said = read_until(process, "Ctrl-C")
        assert "failed: the server ended by itself\ntritonserver ended, killed by SIGKILL" in said
        assert "restart 1 of at most 5 in 10 minutes" in said
        assert re.findall(r"\w+://\S+", said) == urls
        assert echo(urls[0], "hello") == "hello"
        assert proc.group(first) == []
        assert list(SHM.glob(regions)) == []
        process.terminate()
        _, log = process.communicate(timeout=15)
        assert process.returncode == 0, log


@pytest.mark.integration
def test_a_model_whose_process_ends_takes_the_server_along(
    echo_repository: Path, echo: Callable[..., str], proc: Any
) -> None:
    with bertron_serve(echo_repository, *FREE_PORTS) as process:
        url = re.findall(r"http://\S+", read_until(process, "Ctrl-C"))[0]
        (stub,) = [pid for pid in proc.group(server_of(process)) if pid != server_of(process)]
        os.kill(stub, signal.SIGKILL)
        said = read_until(process, "Ctrl-C")
        assert f"failed: the process of model echo ended, pid {stub}" in said
        assert echo(url, "hello") == "hello"


@pytest.mark.integration
def test_a_model_whose_process_ends_while_the_banner_is_written_is_noticed(
    echo_repository: Path, proc: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_banner = serve._banner
    starts = []

    def kill_and_write_banner(server: TritonServer, **figures: float) -> str:
        starts.append(server.pid)
        if len(starts) == 1:
            (stub,) = [pid for pid in proc.group(server.pid) if pid != server.pid]
            os.kill(stub, signal.SIGKILL)
        else:
            signal.raise_signal(signal.SIGTERM)
        return write_banner(server, **figures)

    monkeypatch.setattr(serve, "_banner", kill_and_write_banner)
    deadline = threading.Timer(30, os.kill, (os.getpid(), signal.SIGTERM))
    deadline.start()
    try:
        arguments = ["serve", "--model-repository", str(echo_repository), *FREE_PORTS]
        assert cli.main(arguments) == 0
    finally:
        deadline.cancel()
        deadline.join()
    assert len(starts) == 2


@pytest.mark.integration
def test_a_model_that_answers_nobody_is_noticed(
    echo_repository: Path, add_model: Callable[..., Path]
) -> None:
    """Its process lives, and Triton server is content with it."""
    add_model(echo_repository, "text_embedding", SILENT_MODEL)
    add_model(echo_repository, "bert")
    (echo_repository / "bert" / "1" / "model.pt").touch()
    with bertron_serve(echo_repository, *FREE_PORTS, "--stall-timeout-s", "4") as process:
        read_until(process, "Ctrl-C")
        said = read_until(process, "Ctrl-C", timeout_s=60)
        assert re.search(r"failed: text_embedding has answered nobody for \d+ s\n", said)


@pytest.mark.integration
def test_what_cannot_start_is_not_tried_again(repository_of: Callable[[str], Path]) -> None:
    repository = repository_of("raise ValueError('no such model')\n")
    with bertron_serve(repository, *FREE_PORTS) as process:
        out, log = process.communicate(timeout=30)
        assert process.returncode == 1
        assert "no such model" in log
        assert "starting again" not in out


@pytest.mark.integration
def test_a_signal_between_two_starts_stops_it(echo_repository: Path, proc: Any) -> None:
    with bertron_serve(echo_repository, *FREE_PORTS) as process:
        for _ in range(4):  # the next start waits for four seconds
            read_until(process, "Ctrl-C")
            server = server_of(process)
            os.kill(server, signal.SIGKILL)
        read_until(process, "restart 4 of")
        process.terminate()
        started = time.monotonic()
        out, log = process.communicate(timeout=15)
        assert time.monotonic() - started < 3
        assert process.returncode == 0, log
        assert out.splitlines()[-1] == "stopped"
        assert proc.group(server) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stall-timeout-s", "0"], "0 is no time; more than 0 seconds are wanted"),
        (["--stall-timeout-s", "inf"], "inf is no time"),
        (["--max-restarts", "-1"], "-1 is no count; 0 or more is wanted"),
        (["--http-port", "70000"], "argument --http-port: 70000 is no port; 0 to 65535 is wanted"),
        (["--grpc-port", "-1"], "argument --grpc-port: -1 is no port; 0 to 65535 is wanted"),
        (["--metrics-port", "65536"], "--metrics-port: 65536 is no port; 0 to 65535 is wanted"),
        (["--http-port", "http"], "argument --http-port: http is no port"),
    ],
)
def test_a_limit_that_is_none_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["serve", *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.integration
def test_a_taken_port_is_named(
    running: Any, echo_repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["serve", "--model-repository", str(echo_repository), *FREE_PORTS]
    assert cli.main([*arguments, "--grpc-port", str(running.grpc_port)]) == 1
    assert f"grpc port {running.grpc_port} on 127.0.0.1 is taken" in capsys.readouterr().err


@pytest.mark.integration
def test_an_open_network_is_warned_about(
    running: Any, echo_repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["serve", "--model-repository", str(echo_repository), "--address", "0.0.0.0"]  # noqa: S104
    assert cli.main([*arguments, "--http-port", str(running.http_port)]) == 1  # it is taken
    assert "without TLS and without authentication" in capsys.readouterr().out
