from __future__ import annotations

from pathlib import Path

import pytest
from bertron_server import cli
from fake_triton_server import FakeTritonServer
from tls_certificates import Certificates


@pytest.mark.parametrize("command", ["health", "info"])
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_token_in_the_environment_is_sent(
    command: str, protocol: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeTritonServer() as server:
        server.behaviour.required_token = "secret"  # noqa: S105
        assert cli.main([command, "--url", server.url(protocol)]) == 1
        monkeypatch.setenv("BERTRON_TOKEN", "secret")
        assert cli.main([command, "--url", server.url(protocol)]) == 0
        assert "secret" not in capsys.readouterr().out


@pytest.mark.parametrize("command", ["health", "info"])
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_an_encrypted_server_is_asked_with_its_authority(
    command: str, protocol: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    certificates = Certificates(tmp_path)
    with FakeTritonServer(tls=certificates.server) as server:
        url = server.url(protocol)
        assert cli.main([command, "--url", url]) == 1
        assert "certificate" in capsys.readouterr().err.lower()
        roots = str(certificates.roots)
        assert cli.main([command, "--url", url, "--root-certificates", roots]) == 0


@pytest.mark.parametrize("command", ["health", "info"])
def test_certificates_that_are_not_there_are_named(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for url in ("https://127.0.0.1:1", "grpcs://127.0.0.1:1"):
        assert cli.main([command, "--url", url, "--root-certificates", "/no/such.pem"]) == 1
        assert "No such file or directory: '/no/such.pem'" in capsys.readouterr().err
