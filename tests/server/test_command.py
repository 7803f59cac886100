from __future__ import annotations

import dataclasses
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from bertron_backend import queue_age
from bertron_server.command import (
    OWN_FLAGS,
    ServerSettings,
    server_command,
    server_environment,
    shell_line,
)
from bertron_server.errors import TritonServerError
from bertron_server.installation import Installation

SETTINGS = ServerSettings(
    model_repository=Path("/models"),
    address="127.0.0.1",
    http_port=18000,
    grpc_port=18001,
    metrics_port=18002,
    exit_timeout_s=7,
    admin_key="secret",
    shm_prefix="bertron_1_",
)
URL = "http://127.0.0.1:18000"
CONTAINER = Installation(binary=Path("/opt/tritonserver/bin/tritonserver"), version=(2, 70))
WHEEL = Installation(
    binary=Path("/venv/tritonserver"),
    version=(2, 51),
    backend_directory=Path("/cache/backends"),
    library_directories=(Path("/venv/libs"), Path("/python/lib")),
)


def flags(command: list[str]) -> dict[str, str]:
    return {flag: value for flag, _, value in (argument.partition("=") for argument in command)}


def test_everything_listens_where_it_was_asked_to() -> None:
    got = flags(server_command(WHEEL, SETTINGS))
    for endpoint, port in (("http", "18000"), ("grpc", "18001"), ("metrics", "18002")):
        assert got[f"--{endpoint}-address"] == "127.0.0.1"
        assert got[f"--{endpoint}-port"] == port
    assert got["--exit-timeout-secs"] == "7"


def test_admin_apis_are_closed_and_reading_stays_open() -> None:
    got = flags(server_command(WHEEL, SETTINGS))
    for flag in ("--http-restricted-api", "--grpc-restricted-protocol"):
        closed, _, key = got[flag].partition(":")
        assert set(closed.split(",")) == {"shared-memory", "model-repository", "logging", "trace"}
        assert key == "bertron-admin-key=secret"


@pytest.mark.parametrize(
    ("version", "knows"),
    [
        (None, False),  # nothing tells: the oldest server's flags
        ((2, 51), False),
        ((2, 58), False),
        ((2, 59), True),  # 25.06 brought it
        ((3, 0), True),
    ],
)
def test_a_flag_is_only_given_to_a_version_that_knows_it(
    version: tuple[int, int] | None, knows: bool
) -> None:
    installation = Installation(binary=Path("tritonserver"), version=version)
    got = flags(server_command(installation, SETTINGS))
    assert ("--http-max-input-size" in got) is knows


def test_a_container_keeps_its_own_backends_and_libraries() -> None:
    assert "--backend-directory" not in flags(server_command(CONTAINER, SETTINGS))
    assert "LD_LIBRARY_PATH" not in server_environment(CONTAINER, URL, {"PATH": "/bin"})


def test_the_wheel_gets_its_backends_and_libraries() -> None:
    assert flags(server_command(WHEEL, SETTINGS))["--backend-directory"] == "/cache/backends"
    environment = server_environment(WHEEL, URL, {"PATH": "/bin", "LD_LIBRARY_PATH": "/lib/mine"})
    assert environment["LD_LIBRARY_PATH"] == "/venv/libs:/python/lib:/lib/mine"


def test_this_environment_comes_first_on_the_path() -> None:
    environment = server_environment(WHEEL, URL, {"PATH": "/usr/bin"})
    assert environment["PATH"] == f"{Path(sys.executable).parent}:/usr/bin"
    # An empty entry would be the working directory.
    assert server_environment(WHEEL, URL, {})["LD_LIBRARY_PATH"] == "/venv/libs:/python/lib"


def test_the_models_know_where_the_server_answers() -> None:
    assert server_environment(CONTAINER, URL, {})["BERTRON_HTTP_URL"] == URL
    assert queue_age.URL_VARIABLE == "BERTRON_HTTP_URL"


def test_a_relative_repository_becomes_absolute() -> None:
    relative = dataclasses.replace(SETTINGS, model_repository=Path("some/models"))
    got = flags(server_command(WHEEL, relative))
    assert got["--model-repository"] == str(Path.cwd() / "some/models")


def test_further_flags_come_last() -> None:
    more = dataclasses.replace(SETTINGS, extra_args=("--log-verbose=1", "--id=mine"))
    assert server_command(WHEEL, more)[-2:] == ["--log-verbose=1", "--id=mine"]


@pytest.mark.parametrize("flag", OWN_FLAGS)
def test_a_flag_that_would_make_the_urls_untrue_is_refused(flag: str) -> None:
    more = dataclasses.replace(SETTINGS, extra_args=(f"{flag}=1",))
    with pytest.raises(TritonServerError, match=flag):
        server_command(WHEEL, more)


def test_the_shell_line_survives_a_shell() -> None:
    words = ["a b", "it's", "$HOME", "*", ""]
    line = shell_line(
        [sys.executable, "-c", "import os, sys; print(sys.argv[1:], os.environ['X'])", *words],
        {"X": "y 'z"},
    )
    done = subprocess.run(
        ["/bin/sh", "-c", line], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.strip() == f"{words} y 'z"
    assert shlex.split(line)[0] == "X=y 'z"
