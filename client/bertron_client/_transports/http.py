"""HTTP/1.1 over blocking sockets.

tritonclient's HTTP client runs on gevent and knows no limit for a whole call, so a server that
sends a byte now and then holds it for ever. Here the socket's timeout is set from the call's
deadline before each read and write. It works the same when gevent has replaced the standard
sockets.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Any, List, Optional

from .._call import Call
from .._exceptions import BertronError, ServerUnavailableError
from .._tracing import trace_headers
from .._wire import http as wire
from .._wire.http import HttpAnswer
from .._wire.operations import Operation
from .base import Options, Url
from .http1 import AnswerParser
from .http_faults import (
    TIMEOUTS,
    StaleConnectionError,
    blamed_on,
    connect_fault,
    fault_of,
    tunnel_fault,
)
from .http_route import Route
from .resolver import resolve

MAX_IDLE_CONNECTIONS = 32  # kept open between calls; more threads than this pay a new connection
_READ_BYTES = 256 * 1024


class _Connection:
    """One kept-alive connection, used by one thread at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._is_used = False
        self.is_reusable = False

    def exchange(self, method: str, head: bytes, body: bytes, call: Call) -> HttpAnswer:
        """Send one request and read its answer; ``is_reusable`` says whether another may follow."""
        is_first, self._is_used, self.is_reusable = not self._is_used, True, False
        parser = AnswerParser(method, call.where)
        with call.abortable(self._abort):
            try:
                # Short ones in one packet; a large body is not copied for it.
                if len(body) < _READ_BYTES:
                    self._send(head + body, call)
                else:
                    self._send(head, call)
                    self._send(body, call)
            except OSError as error:
                # A server that refuses what is too large answers before it has read it all.
                fault: Optional[OSError] = error
            else:
                fault = None
            try:
                answer = self._receive(parser, call)
            except (OSError, ServerUnavailableError) as error:
                is_reset = not isinstance(error, TIMEOUTS) and not parser.has_begun
                if is_reset and not is_first and not call.is_cancelled:
                    raise StaleConnectionError from error
                raise fault or error from None
            # Only behind a complete answer: the rest of another would be the next request's.
            self.is_reusable = parser.is_reusable and fault is None
            return answer

    def _send(self, data: bytes, call: Call) -> None:
        view = memoryview(data)
        while view:  # not sendall: over TLS it takes the timeout for each of its parts
            self._sock.settimeout(call.remaining_s())
            view = view[self._sock.send(view) :]

    def _receive(self, parser: AnswerParser, call: Call) -> HttpAnswer:
        while True:
            self._sock.settimeout(call.remaining_s())
            answer = parser.feed(self._sock.recv(_READ_BYTES))
            if answer is not None:
                return answer

    def has_news(self) -> bool:
        """Whether something came while nothing was asked: the end, or an answer too many."""
        try:
            self._sock.setblocking(False)
            # The plain socket's own: over TLS nothing may be peeked at, but its bytes may.
            socket.socket.recv(self._sock, 1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            return True
        return True

    def _abort(self) -> None:
        """Wake a thread that waits on this socket."""
        with contextlib.suppress(OSError):  # it was closed or lost meanwhile
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close without a word, over TLS too."""
        self._sock.close()


class HttpTransport:
    """Connections are opened when needed and kept for the next call."""

    def __init__(self, url: Url, options: Options) -> None:
        self._route = Route(url, options)
        self._options = options
        self._lock = threading.Lock()
        self._idle: List[_Connection] = []
        self._is_closed = False

    def perform(self, operation: Operation, call: Call) -> Any:
        """Return the operation's result."""
        request = wire.encode(operation, call.remaining_us, self._options.compression)
        head, body = self._route.request_bytes(request, trace_headers())
        try:
            answer = self._exchange(request.method, head, body, call)
        except BertronError:
            raise
        except OSError as error:
            raise fault_of(error, call) from error
        return wire.decode(operation, answer, call.where)

    def close(self) -> None:
        """Drop every idle connection; one in use is dropped when its call ends."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def forget(self) -> None:
        """Close this process's ends; the parent's stay open."""
        self._lock = threading.Lock()  # a thread that is not here may have held the other
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _exchange(self, method: str, head: bytes, body: bytes, call: Call) -> HttpAnswer:
        """Use a kept connection, and a new one if the server has closed that meanwhile."""
        connection = self._take() or self._connect(call)
        try:
            try:
                return connection.exchange(method, head, body, call)
            except StaleConnectionError:
                connection.close()
                connection = self._connect(call)
                return connection.exchange(method, head, body, call)
        finally:
            self._give_back(connection)

    def _take(self) -> Optional[_Connection]:
        while True:
            with self._lock:
                if self._is_closed:
                    raise RuntimeError("the client is closed")
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if not connection.has_news():
                return connection
            connection.close()

    def _give_back(self, connection: _Connection) -> None:
        with self._lock:
            if (
                connection.is_reusable
                and not self._is_closed
                and len(self._idle) < MAX_IDLE_CONNECTIONS
            ):
                self._idle.append(connection)
                return
        connection.close()

    def _connect(self, call: Call) -> _Connection:
        """Open a connection: to the server or the proxy, then the tunnel, then TLS."""
        route = self._route
        timeout_s = self._options.connect_timeout_s
        connecting = call.limited(timeout_s)
        try:
            with blamed_on(route.proxy, call):
                sock = _open(route.host, route.port, connecting)
            try:
                if route.tunnel_request is not None:
                    _open_tunnel(sock, route.tunnel_request, connecting)
                if route.ssl_context is not None:
                    sock.settimeout(connecting.remaining_s())
                    sock = route.ssl_context.wrap_socket(sock, server_hostname=route.url.host)
            except BaseException:
                sock.close()
                raise
        except TIMEOUTS as error:
            raise connect_fault(route, timeout_s, call) from error
        return _Connection(sock)


def _open_tunnel(sock: socket.socket, request: bytes, call: Call) -> None:
    answer = _Connection(sock).exchange("CONNECT", request, b"", call)
    if not 200 <= answer.status < 300:
        raise tunnel_fault(answer.status, call)


def _open(host: str, port: int, call: Call) -> socket.socket:
    """Try each address of the host, none longer than its share of the time left."""
    addresses = resolve(host, port, call.remaining_s())
    fault: Optional[OSError] = None
    for number, (family, address) in enumerate(addresses):
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(call.remaining_s() / (len(addresses) - number))
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        except OSError as error:
            sock.close()
            fault = error
        except BaseException:
            sock.close()
            raise
    raise fault or OSError("the host has no address")
