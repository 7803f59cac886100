from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from bertron_server import cli
from fake_triton_server import EMBEDDING_SIZE, FakeTritonServer, closed_port_url


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_server_that_embeds_is_healthy(protocol: str, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeTritonServer() as server:
        assert cli.main(["health", "--url", server.url(protocol)]) == 0
        assert len(server.behaviour.requests) == 1  # a real inference
        said = capsys.readouterr().out
        assert said.startswith(f"{server.url(protocol)} healthy: {EMBEDDING_SIZE} dimensions in ")
        assert said.endswith(" ms\n")


def test_a_server_that_is_not_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound and not listening: refused
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        assert cli.main(["health", "--url", url]) == 1
    assert f"{url} unhealthy: " in capsys.readouterr().err


def test_a_server_that_does_not_answer_in_time_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeTritonServer() as server:
        server.behaviour.delay_s = 1.0
        assert cli.main(["health", "--url", server.http_url, "--timeout-s", "0.3"]) == 1
    assert "unhealthy" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (np.full((1, 4), np.nan), "not finite"),
        (np.zeros((2, 4)), r"shape (2, 4)"),
        (np.zeros((1, 0)), r"shape (1, 0)"),
    ],
)
def test_an_answer_that_cannot_be_right_is_not(
    answer: object,
    cause: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("bertron_client.Client.embed", lambda _client, _texts: answer)
    assert cli.main(["health"]) == 1
    assert cause in capsys.readouterr().err


def test_a_url_that_is_none_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["health", "--url", "nonsense"]) == 1
    assert "nonsense unhealthy" in capsys.readouterr().err


@pytest.mark.parametrize("redirection", [">&-", ">/dev/full", "2>&-", ">&- 2>&-"])
def test_who_reads_it_does_not_decide_who_is_healthy(
    bertron_to: Callable[..., Any], redirection: str
) -> None:
    with FakeTritonServer() as server:
        probe = bertron_to(redirection, "health", "--url", server.http_url)
    assert (probe.returncode, probe.stderr) == (0, "")


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "2>/dev/full"])
def test_who_reads_it_does_not_decide_who_is_not(
    bertron_to: Callable[..., Any], redirection: str
) -> None:
    probe = bertron_to(redirection, "health", "--url", closed_port_url("http"))
    assert probe.returncode == 1
    assert "Traceback" not in probe.stderr
