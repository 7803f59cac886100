"""Where a request goes by way of a proxy."""

import pytest
from bertron_client._transports.base import make_options, parse_url
from bertron_client._transports.http_route import Route


@pytest.mark.parametrize(
    ("proxy", "port"),
    [
        ("http://proxy.example", 80),
        ("http://proxy.example/", 80),
        ("http://proxy.example:3128", 3128),
    ],
)
def test_a_proxys_port_is_that_of_http_unless_it_is_named(proxy, port):
    url = parse_url("http://server.example:8000")
    options = make_options(
        url,
        connect_timeout_s=1.0,
        headers=None,
        token=None,
        compression=None,
        tls=None,
        proxy=proxy,
    )
    route = Route(url, options)
    assert (route.host, route.port) == ("proxy.example", port)
    assert route.proxy == f"proxy.example:{port}"
