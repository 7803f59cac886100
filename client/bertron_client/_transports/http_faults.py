"""What a fault of a connection means to the caller; the same for blocking and async HTTP."""

from __future__ import annotations

import socket
import ssl
from contextlib import contextmanager
from typing import Iterator, Optional

from .._call import Call
from .._exceptions import AuthenticationError, BertronError, ServerUnavailableError
from .http_route import Route

TIMEOUTS = (socket.timeout, TimeoutError)  # one class since Python 3.10


class StaleConnectionError(Exception):
    """The server had closed this kept connection before it answered."""


def fault_of(error: OSError, call: Call) -> BertronError:
    """Return our error for one of the operating system's or of the TLS library's."""
    if isinstance(error, TIMEOUTS) and call.is_over():
        return call.exceeded()
    if isinstance(error, ssl.SSLCertVerificationError):
        return AuthenticationError(
            f"the server's certificate cannot be trusted: {error.verify_message} ({call.where})"
        )
    return ServerUnavailableError(f"{_reason(error)} ({call.where})")


@contextmanager
def blamed_on(proxy: Optional[str], call: Call) -> Iterator[None]:
    """Have it said of the proxy, where there is one, that it took no connection.

    Nothing has been heard of the server then, which alone is named by ``call.where``.
    """
    try:
        yield
    except TIMEOUTS:
        raise
    except OSError as error:
        if proxy is None:
            raise
        raise ServerUnavailableError(
            f"the proxy {proxy}: {_reason(error)} ({call.where})"
        ) from error


def connect_fault(route: Route, timeout_s: float, call: Call) -> BertronError:
    """Return the error for a connection that did not come about in its time."""
    if call.is_over():
        return call.exceeded()
    way = f"to {route.url.netloc}" if route.proxy is None else f"through the proxy {route.proxy}"
    return ServerUnavailableError(f"no connection {way} within {timeout_s:g} s ({call.where})")


def tunnel_fault(status: int, call: Call) -> BertronError:
    """Return the error for a proxy that opens no tunnel."""
    kind = AuthenticationError if status == 407 else ServerUnavailableError
    return kind(f"the proxy opens no tunnel: HTTP {status} ({call.where})")


def _reason(error: OSError) -> str:
    """The operating system's own words."""
    return error.strerror or str(error) or type(error).__name__
