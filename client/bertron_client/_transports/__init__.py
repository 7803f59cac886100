"""Ways to a server. Each is imported only when a url asks for it."""

from __future__ import annotations

from .base import Transport, Url, parse_url

__all__ = ["Transport", "Url", "open_transport", "parse_url"]


def open_transport(url: Url) -> Transport:
    """Return the transport for a url, not yet connected."""
    if url.scheme == "grpc":
        from .grpc import GrpcTransport  # here, because it takes a quarter of a second to import

        return GrpcTransport(url)
    from .http import HttpTransport

    return HttpTransport(url)
