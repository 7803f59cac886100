from __future__ import annotations

import json

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
        assert f"url                      {server.url(protocol)}" in shown
        assert "models                   tokenizer bert" in shown
        (row,) = (line for line in shown if line.startswith("text_embedding "))
        assert row.split()[1:4] == ["3", "0", "20"]  # requests, failed, texts


def test_a_server_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    url = closed_port_url("http")
    assert cli.main(["info", "--url", url]) == 1
    assert url in capsys.readouterr().err


def test_a_url_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--url", "nonsense"]) == 1
    assert "nonsense" in capsys.readouterr().err
