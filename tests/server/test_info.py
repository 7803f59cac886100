from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from bertron_client import Client
from bertron_server import cli
from fake_triton_server import EMBEDDING_SIZE, FakeTritonServer, closed_port_url


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_what_a_server_is_and_has_done(protocol: str, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeTritonServer() as server, Client(server.url(protocol)) as client:
        client.embed([str(number) for number in range(20)])
        assert cli.main(["info", "--url", server.url(protocol), "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["server"]["embedding_size"] == EMBEDDING_SIZE
        assert said["server"]["models"] == ["tokenizer", "bert"]
        assert said["statistics"]["text_embedding"]["inferences"] == 20
        assert cli.main(["info", "--url", server.url(protocol)]) == 0
        shown = capsys.readouterr().out.splitlines()
        facts = [line.split(maxsplit=1) for line in shown]
        assert ["url", server.url(protocol)] in facts
        assert ["models", "tokenizer bert"] in facts
        (row,) = (line for line in shown if line.startswith("text_embedding "))
        assert row.split()[1:4] == ["3", "0", "20"]  # requests, failed, texts


def test_a_server_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    url = closed_port_url("http")
    assert cli.main(["info", "--url", url]) == 1
    assert url in capsys.readouterr().err


def test_a_url_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--url", "nonsense"]) == 1
    assert "nonsense" in capsys.readouterr().err


@pytest.mark.parametrize("factor", [0, 1, 10**9])
def test_columns_stay_apart_whatever_they_hold(
    factor: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    busy = {"requests_succeeded": 7, "requests_failed": 8, "inferences": 9, "executions": 7}
    statistics = {name: count * factor for name, count in busy.items()}
    with FakeTritonServer() as server:
        with Client(server.http_url) as client:
            idle = client.statistics()["text_embedding"]
        rows = {
            "text_embedding": replace(
                idle, **statistics, queue_ms=72287.8 * factor, compute_ms=80112.5 * factor
            ),
            "bert": idle,
        }
        monkeypatch.setattr(Client, "statistics", lambda _client: rows)
        assert cli.main(["info", "--url", server.http_url]) == 0
    head, *table = capsys.readouterr().out.partition("since its start")[2].splitlines()
    assert head.split() == ["requests", "failed", "texts", "batches", "queue", "compute"]
    assert table[0].split()[1:] == [
        *(str(count * factor) for count in busy.values()),
        f"{72287.8 * factor:.1f}ms",
        f"{80112.5 * factor:.1f}ms",
    ]
    assert len({len(line) for line in table}) == 1  # one below the other


@pytest.mark.parametrize("redirection", [">&-", ">/dev/full"])
def test_facts_that_reach_nobody_are_a_failure(
    bertron_to: Callable[..., Any], redirection: str
) -> None:
    with FakeTritonServer() as server:
        done = bertron_to(redirection, "info", "--url", server.http_url)
    assert done.returncode == 1
    assert done.stderr == "bertron info: stdout is closed, full or no longer read\n"
