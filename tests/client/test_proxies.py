"""HTTP through a forward proxy: plain, through a tunnel, with a password, and when it fails."""

import numpy as np
import pytest
from bertron_client import (
    AuthenticationError,
    DeadlineExceededError,
    ProtocolError,
    RetryPolicy,
    ServerUnavailableError,
    Tls,
)
from deadlines import ends_within
from fake_triton_model import vectors_of
from fake_triton_server import FakeTritonServer, closed_port_url
from forward_proxy import ForwardProxy
from tls_certificates import Certificates

NEVER = RetryPolicy(max_retries=0)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def proxy():
    with ForwardProxy() as running:
        yield running


@pytest.fixture
def secure_server(certificates):
    with FakeTritonServer(tls=certificates.server) as running:
        yield running


@pytest.fixture
def trusting(certificates):
    return Tls(root_certificates=certificates.roots)


def test_http_is_forwarded(server, proxy, open_client):
    client = open_client(server.http_url, proxy=proxy.url)
    texts = [f"text {i}" for i in range(40)]
    np.testing.assert_array_equal(client.embed(texts), vectors_of(texts))
    infer = f"POST {server.http_url}/v2/models/text_embedding/infer"
    assert proxy.forwarded.count(infer) == 5
    assert len(proxy.forwarded) == len(server.behaviour.arrivals)
    assert not proxy.tunnels


def test_https_goes_through_a_tunnel(secure_server, trusting, proxy, open_client):
    client = open_client(secure_server.http_url, proxy=proxy.url, tls=trusting)
    texts = [f"text {i}" for i in range(40)]
    for _ in range(3):
        np.testing.assert_array_equal(client.embed(texts), vectors_of(texts))
    address = secure_server.http_url.partition("://")[2]
    assert set(proxy.tunnels) == {address}
    assert len(proxy.tunnels) == secure_server.behaviour.connections_accepted <= 4
    assert not proxy.forwarded


@pytest.mark.parametrize("is_secure", [False, True])
def test_a_proxy_with_a_password(request, server, open_client, is_secure):
    with ForwardProxy(user="us@er", password="p@ss/wörd") as proxy:  # noqa: S106
        if is_secure:
            server = request.getfixturevalue("secure_server")
        tls = request.getfixturevalue("trusting") if is_secure else None
        right = proxy.url_for("us%40er", "p%40ss%2Fw%C3%B6rd")
        client = open_client(server.http_url, proxy=right, tls=tls)
        assert len(client.embed(["a"])) == 1
        assert all("proxy-authorization" not in a.headers for a in server.behaviour.arrivals)
        for wrong in (proxy.url, proxy.url_for("us%40er", "secret")):
            client = open_client(server.http_url, proxy=wrong, tls=tls)
            with pytest.raises(AuthenticationError) as caught:
                client.embed(["a"])
            assert "407" in str(caught.value)
            assert "secret" not in f"{caught.value}{client!r}"
        client.close()


@pytest.mark.parametrize("is_secure", [False, True])
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("refuses", ServerUnavailableError),
        ("forbids", (AuthenticationError, ServerUnavailableError)),
        ("hangs", DeadlineExceededError),
        ("garbage", ProtocolError),
    ],
)
def test_a_proxy_that_fails(request, server, proxy, open_client, is_secure, fault, kind):
    if is_secure:
        server = request.getfixturevalue("secure_server")
    tls = request.getfixturevalue("trusting") if is_secure else None
    client = open_client(server.http_url, proxy=proxy.url, tls=tls, retry=NEVER)
    proxy.fault = fault
    with ends_within(0.5), pytest.raises(kind):
        client.embed(["a"], timeout_s=0.5)
    proxy.fault = None
    assert len(client.embed(["a"])) == 1


@pytest.mark.parametrize("is_secure", [False, True])
def test_no_proxy_there_is_said_of_the_proxy(request, server, open_client, is_secure):
    if is_secure:
        server = request.getfixturevalue("secure_server")
    tls = request.getfixturevalue("trusting") if is_secure else None
    address = closed_port_url("http").partition("://")[2]
    client = open_client(server.http_url, proxy=f"http://us:secret@{address}", tls=tls, retry=NEVER)
    with pytest.raises(
        ServerUnavailableError, match=rf"^the proxy {address}: .*([Rr]efused|Connect call failed)"
    ) as caught:
        client.embed(["a"])
    assert server.http_url in str(caught.value)
    assert "secret" not in str(caught.value)
    assert not server.behaviour.arrivals


def test_an_unknown_proxy_is_named(server, open_client):
    proxy = "http://no-such-host.invalid:1"
    client = open_client(server.http_url, proxy=proxy, retry=NEVER, timeout_s=5)
    with pytest.raises((ServerUnavailableError, DeadlineExceededError)) as caught:
        client.embed(["a"])
    if isinstance(caught.value, ServerUnavailableError):  # else the look-up itself hung
        assert "the proxy no-such-host.invalid:1: " in str(caught.value)


def test_a_proxy_that_is_slow_to_open_a_tunnel_is_named(
    secure_server, trusting, proxy, open_client
):
    client = open_client(
        secure_server.http_url, proxy=proxy.url, tls=trusting, retry=NEVER, connect_timeout_s=0.2
    )
    proxy.fault = "hangs"
    address = proxy.url.partition("://")[2]
    with pytest.raises(
        ServerUnavailableError, match=rf"no connection through the proxy {address} within 0\.2 s"
    ):
        client.embed(["a"], timeout_s=5)


def test_no_server_behind_the_proxy(proxy, trusting, open_client):
    for url, tls in ((closed_port_url("http"), None), (closed_port_url("https"), trusting)):
        client = open_client(url, proxy=proxy.url, tls=tls, retry=NEVER)
        with pytest.raises(ServerUnavailableError, match="502"):
            client.embed(["a"])


def test_the_environment_names_a_proxy_when_asked(server, proxy, open_client, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", proxy.url)
    assert len(open_client(server.http_url).embed(["a"])) == 1
    assert not proxy.forwarded
    assert len(open_client(server.http_url, proxy="environment").embed(["a"])) == 1
    count = len(proxy.forwarded)
    assert count > 0
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert len(open_client(server.http_url, proxy="environment").embed(["a"])) == 1
    assert len(proxy.forwarded) == count


@pytest.mark.parametrize(
    "wrong", ["127.0.0.1:8080", "socks5://x:1", "http://", "http://x:99999", "http://x:1/path"]
)
def test_a_wrong_proxy_is_refused(open_client, wrong):
    with pytest.raises(ValueError, match="proxy is not http://"):
        open_client("http://127.0.0.1:1", proxy=wrong)


def test_grpc_takes_no_proxy(server, proxy, open_client, monkeypatch):
    with pytest.raises(ValueError, match="proxy is given, but grpc://"):
        open_client(server.grpc_url, proxy=proxy.url)
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("grpc_proxy", proxy.url)
    assert len(open_client(server.grpc_url).embed(["a"])) == 1
    assert not proxy.tunnels
