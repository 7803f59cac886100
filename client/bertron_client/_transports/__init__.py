"""Ways to a server. Each is imported only when a url asks for it."""

from __future__ import annotations

from .base import AsyncTransport, Options, Transport, Url

__all__ = ["open_async_transport", "open_transport"]


def open_transport(url: Url, options: Options) -> Transport:
    """Return the transport for a url, for threads; not yet connected."""
    if url.is_grpc:
        from .grpc import GrpcTransport  # here, because it is slow to import

        return GrpcTransport(url, options)
    from .http import HttpTransport

    return HttpTransport(url, options)


def open_async_transport(url: Url, options: Options) -> AsyncTransport:
    """Return the transport for a url, for the tasks of an event loop; not yet connected."""
    if url.is_grpc:
        from .grpc_async import AsyncGrpcTransport

        return AsyncGrpcTransport(url, options)
    from .http_async import AsyncHttpTransport

    return AsyncHttpTransport(url, options)
