"""What a fault of a connection means to the caller; the same for blocking and async HTTP."""

from __future__ import annotations

import socket
import ssl

from .._call import Call
from .._exceptions import AuthenticationError, BertronError, ServerUnavailableError

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
    reason = error.strerror or str(error) or type(error).__name__
    return ServerUnavailableError(f"{reason} ({call.where})")


def connect_fault(host: str, port: int, timeout_s: float, call: Call) -> BertronError:
    """Return the error for a connection that did not come about in its time."""
    if call.is_over():
        return call.exceeded()
    return ServerUnavailableError(
        f"no connection to {host}:{port} within {timeout_s:g} s ({call.where})"
    )


def tunnel_fault(status: int, call: Call) -> BertronError:
    """Return the error for a proxy that opens no tunnel."""
    kind = AuthenticationError if status == 407 else ServerUnavailableError
    return kind(f"the proxy opens no tunnel: HTTP {status} ({call.where})")
