"""https:// and grpcs://: who is trusted, and who is not."""

from dataclasses import replace

import numpy as np
import pytest
from bertron_client import (
    AuthenticationError,
    BertronError,
    DeadlineExceededError,
    ProtocolError,
    RetryPolicy,
    ServerUnavailableError,
    Tls,
)
from deadlines import ends_within
from fake_triton_model import vectors_of
from fake_triton_server import FakeTritonServer, RawServer
from tls_certificates import Certificates

NEVER = RetryPolicy(max_retries=0)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def trusting(certificates):
    return Tls(root_certificates=certificates.roots)


@pytest.fixture
def open_server():
    """Starts servers, and stops them in the end."""
    running = []

    def opened(identity):
        running.append(FakeTritonServer(tls=identity).__enter__())
        return running[-1]

    yield opened
    for server in running:
        server.__exit__()


def test_a_trusted_server_is_talked_to(certificates, trusting, protocol, open_client, open_server):
    server = open_server(certificates.server)
    assert server.url(protocol).startswith(f"{protocol}s://")
    client = open_client(server.url(protocol), tls=trusting)
    texts = [f"text {i}" for i in range(100)]
    for _ in range(3):
        np.testing.assert_array_equal(client.embed(texts), vectors_of(texts))
    assert client.is_ready()
    assert client.server_info().url == server.url(protocol)
    if protocol == "http":
        assert server.behaviour.connections_accepted <= 4


def test_a_name_is_verified_as_well_as_an_address(
    certificates, trusting, protocol, open_client, open_server
):
    server = open_server(certificates.server)
    client = open_client(server.url(protocol).replace("127.0.0.1", "localhost"), tls=trusting)
    assert len(client.embed(["a"])) == 1


@pytest.mark.parametrize(
    ("identity", "roots"),
    [
        ("server", None),  # the system's authorities do not know ours
        ("server", "other_roots"),
        ("server_of_an_unknown_authority", "roots"),
        ("server_of_another_host", "roots"),
        ("expired_server", "roots"),
    ],
)
def test_a_server_that_cannot_be_trusted_gets_nothing(
    certificates, protocol, open_client, open_server, identity, roots
):
    server = open_server(getattr(certificates, identity))
    tls = roots and Tls(root_certificates=getattr(certificates, roots))
    client = open_client(server.url(protocol), tls=tls, token="secret", timeout_s=5)  # noqa: S106
    with ends_within(5), pytest.raises((AuthenticationError, ServerUnavailableError)) as caught:
        client.embed(["a"])
    if protocol == "http":
        assert type(caught.value) is AuthenticationError
        assert "certificate cannot be trusted" in str(caught.value)
    assert not client.is_ready()
    assert not server.behaviour.arrivals


def test_a_server_that_asks_for_a_certificate_gets_it(
    certificates, protocol, open_client, open_server
):
    server = open_server(certificates.mutual_server)
    tls = Tls(
        root_certificates=certificates.roots,
        certificate=certificates.client.certificate,
        key=certificates.client.key,
    )
    client = open_client(server.url(protocol), tls=tls)
    np.testing.assert_array_equal(client.embed(["a"]), vectors_of(["a"]))


@pytest.mark.parametrize("identity", [None, "client_of_an_unknown_authority"])
def test_a_server_that_asks_for_a_certificate_takes_no_other(
    certificates, trusting, protocol, open_client, open_server, identity
):
    server = open_server(certificates.mutual_server)
    tls = trusting
    if identity is not None:
        ours = getattr(certificates, identity)
        tls = replace(trusting, certificate=ours.certificate, key=ours.key)
    client = open_client(server.url(protocol), tls=tls, timeout_s=5, retry=NEVER)
    with ends_within(5), pytest.raises((AuthenticationError, ServerUnavailableError)):
        client.embed(["a"])
    assert not server.behaviour.arrivals


def test_encryption_at_one_end_only(
    certificates, trusting, server, protocol, open_client, open_server
):
    secure = open_server(certificates.server)
    plain = open_client(secure.url(protocol).replace("s://", "://"), retry=NEVER)
    with pytest.raises((ServerUnavailableError, ProtocolError)):
        plain.embed(["a"], timeout_s=3)
    encrypted = open_client(server.url(protocol).replace("://", "s://"), tls=trusting, retry=NEVER)
    with pytest.raises((ServerUnavailableError, ProtocolError)):
        encrypted.embed(["a"], timeout_s=3)


@pytest.mark.parametrize("fault", ["never", "trickle", "garbage", "reset", "close"])
def test_a_handshake_ends_with_the_deadline(trusting, protocol, open_client, fault):
    with RawServer(fault, f"{protocol}s") as raw:
        client = open_client(raw.url, tls=trusting, retry=NEVER)
        with ends_within(0.5), pytest.raises(BertronError) as caught:
            client.embed(["a"], timeout_s=0.5)
        if fault == "never":
            assert type(caught.value) is DeadlineExceededError
        client.close()


def test_settings_that_do_not_go_together_are_refused(
    certificates, trusting, tmp_path, open_client
):
    with pytest.raises(ValueError, match="certificate and key go together"):
        Tls(certificate=certificates.client.certificate)
    for url in ("http://127.0.0.1:1", "grpc://127.0.0.1:1"):
        with pytest.raises(ValueError, match="is not encrypted"):
            open_client(url, tls=trusting)
    missing = Tls(root_certificates=tmp_path / "nothing.pem")
    for url in ("https://127.0.0.1:1", "grpcs://127.0.0.1:1"):
        with pytest.raises(OSError, match=r"nothing\.pem"):
            open_client(url, tls=missing)
