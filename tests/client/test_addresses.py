"""Hosts of several addresses, of which not all answer, and names that no host can have."""

import socket
import time

import numpy as np
import pytest
from bertron_client import RetryPolicy, ServerUnavailableError
from fake_triton_model import vectors_of

NEVER = RetryPolicy(max_retries=0)
HOST = "two.example"
FIRST, SECOND = "127.0.0.2", "127.0.0.1"  # the fake server listens at the second


@pytest.fixture
def url(server, monkeypatch):
    """The server's, by a name that has both addresses."""

    def getaddrinfo(host, port, *arguments, flags=0, **options):
        if host != HOST:
            return original(host, port, *arguments, flags=flags, **options)
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [(*kind, (address, port)) for address in (FIRST, SECOND)]

    original = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return server.http_url.replace(SECOND, HOST)


@pytest.fixture
def silence(url):
    """At the first address connections are neither taken nor refused: its backlog is full."""
    port = int(url.rsplit(":", 1)[1])
    with (
        socket.create_server((FIRST, port), backlog=0) as listener,
        socket.create_connection(listener.getsockname()),
    ):
        yield


def test_a_host_whose_first_address_refuses_is_reached_by_its_second(url, open_client):
    client = open_client(url, retry=NEVER, timeout_s=5)
    np.testing.assert_array_equal(client.embed(["a"]), vectors_of(["a"]))


@pytest.mark.usefixtures("silence")
def test_an_address_that_is_silent_gets_no_more_than_its_share_of_the_time(url, open_client):
    client = open_client(url, retry=NEVER, timeout_s=10, connect_timeout_s=1.0)
    started = time.monotonic()
    np.testing.assert_array_equal(client.embed(["a"]), vectors_of(["a"]))
    assert time.monotonic() - started > 0.4  # it was waited for


# An empty label, and one of more than the 63 characters that DNS has for it.
@pytest.mark.parametrize("host", ["a..example", f"{'x' * 64}.example"])
def test_a_name_that_dns_cannot_hold_is_an_unknown_host(open_client, host):
    client = open_client(f"http://{host}:1", retry=NEVER, timeout_s=5)
    with pytest.raises(ServerUnavailableError, match=rf"{host} cannot be resolved"):
        client.embed(["a"])
