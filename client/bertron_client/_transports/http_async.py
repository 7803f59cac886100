"""HTTP/1.1 on an asyncio event loop."""

from __future__ import annotations

import asyncio
import os
import socket
from functools import partial
from typing import Any, AsyncGenerator, List, Optional

from .._call import Call
from .._exceptions import BertronError, DeadlineExceededError, ServerUnavailableError
from .._tracing import trace_headers
from .._wire import http as wire
from .._wire.http import HttpAnswer
from .._wire.operations import Operation
from .async_deadline import deadline_of
from .base import Options, Url
from .farewell import at_end_of_loop
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
from .resolver import resolve_async

MAX_IDLE_CONNECTIONS = 128  # kept open between calls; more tasks than this pay a new connection


class _Connection(asyncio.Protocol):
    """One kept-alive connection, used by one task at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._process_id = os.getpid()
        self._transport: Any = None
        self._parser: Optional[AnswerParser] = None
        self._answer: Optional[asyncio.Future[HttpAnswer]] = None
        self._is_used = False
        self.is_reusable = False

    async def exchange(self, method: str, head: bytes, body: bytes, call: Call) -> HttpAnswer:
        """Send one request and wait for its answer; when cancelled, the connection is dropped."""
        is_first, self._is_used = not self._is_used, True
        if self._transport.is_closing():
            raise StaleConnectionError
        self._parser = AnswerParser(method, call.where)
        self._answer = asyncio.get_running_loop().create_future()
        self.is_reusable = False
        try:
            self._transport.write(head + body)
            answer = await self._answer
        except (OSError, ServerUnavailableError) as error:
            if not (is_first or self._parser.has_begun or isinstance(error, TIMEOUTS)):
                raise StaleConnectionError from error
            raise
        finally:
            is_reusable = self._parser.is_reusable
            self._answer = None
        self.is_reusable = is_reusable and not self._transport.is_closing()
        return answer

    async def start_tls(self, context: Any, host: str) -> None:
        """Encrypt what follows."""
        loop = asyncio.get_running_loop()
        self._transport = await loop.start_tls(self._transport, self, context, server_hostname=host)

    def abort(self) -> None:
        """Drop the connection without waiting for anything."""
        try:
            self._transport.abort()
        except RuntimeError:  # its event loop has ended
            self.disown()

    def disown(self) -> None:
        """Close this process's end, whatever has become of its event loop.

        A loop that may run again must no longer watch the socket, whose number will be another's.
        The parent's loop must not be touched: a forked child shares with it the list of sockets
        that the system watches.
        """
        if os.getpid() != self._process_id or self._loop.is_closed():
            self._sock.close()
        elif self._loop.is_running():  # in another thread
            self._loop.call_soon_threadsafe(self._transport.abort)
        else:
            self._transport.abort()
            self._sock.close()

    # What asyncio calls.

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._feed(data)

    def eof_received(self) -> None:
        self._feed(b"")

    def connection_lost(self, error: Optional[Exception]) -> None:
        self.is_reusable = False
        if self._answer is not None and not self._answer.done():
            if error is not None:
                self._answer.set_exception(error)
            else:
                self._feed(b"")

    def _feed(self, data: bytes) -> None:
        if self._parser is None or self._answer is None or self._answer.done():
            self.is_reusable = False  # nothing was asked
            self.abort()
            return
        try:
            answer = self._parser.feed(data)
        except BertronError as error:
            self._answer.set_exception(error)
            return
        if answer is not None:
            self._answer.set_result(answer)


class AsyncHttpTransport:
    """Connections are opened when needed and kept for the next call, by one event loop."""

    def __init__(self, url: Url, options: Options) -> None:
        self._route = Route(url, options)
        self._options = options
        self._idle: List[_Connection] = []
        self._is_closed = False
        self._farewell: Optional[AsyncGenerator[None, None]] = None

    async def perform(self, operation: Operation, call: Call) -> Any:
        """Return the operation's result."""
        request = wire.encode(operation, call.remaining_us, self._options.compression)
        head, body = self._route.request_bytes(request, trace_headers())
        try:
            async with deadline_of(call):
                answer = await self._exchange(request.method, head, body, call)
        except BertronError:
            raise
        except OSError as error:
            raise fault_of(error, call) from error
        return wire.decode(operation, answer, call.where)

    async def close(self) -> None:
        """Drop every idle connection; one in use is dropped when its call ends."""
        self._is_closed = True
        farewell, self._farewell = self._farewell, None
        if farewell is not None:
            await farewell.aclose()

    def forget(self) -> None:
        """Let go of connections of another process or of an event loop that has ended."""
        idle, self._idle, self._farewell = self._idle, [], None
        while idle:
            idle.pop().disown()

    async def _exchange(self, method: str, head: bytes, body: bytes, call: Call) -> HttpAnswer:
        """Use a kept connection, and a new one if the server has closed that meanwhile."""
        connection = self._take() or await self._connect(call)
        try:
            try:
                return await connection.exchange(method, head, body, call)
            except StaleConnectionError:
                connection.abort()
                connection = await self._connect(call)
                return await connection.exchange(method, head, body, call)
        finally:
            self._give_back(connection)

    def _take(self) -> Optional[_Connection]:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_reusable:
                return connection
            connection.abort()
        if self._is_closed:
            raise RuntimeError("the client is closed")
        return None

    def _give_back(self, connection: _Connection) -> None:
        if (
            connection.is_reusable
            and not self._is_closed
            and len(self._idle) < MAX_IDLE_CONNECTIONS
        ):
            self._idle.append(connection)
        else:
            connection.abort()

    async def _connect(self, call: Call) -> _Connection:
        """Open a connection: to the server or the proxy, then the tunnel, then TLS."""
        route = self._route
        timeout_s = self._options.connect_timeout_s
        connecting = call.limited(timeout_s)
        if self._farewell is None:
            self._farewell = at_end_of_loop(partial(_drop_all, self._idle))
        try:
            async with deadline_of(connecting):
                with blamed_on(route.proxy, call):
                    connection = await _open(route.host, route.port, connecting)
                try:
                    await self._prepare(connection, connecting)
                except BaseException:
                    connection.abort()
                    raise
        except DeadlineExceededError as error:
            raise connect_fault(route, timeout_s, call) from error
        return connection

    async def _prepare(self, connection: _Connection, call: Call) -> None:
        route = self._route
        if route.tunnel_request is not None:
            answer = await connection.exchange("CONNECT", route.tunnel_request, b"", call)
            if not 200 <= answer.status < 300:
                raise tunnel_fault(answer.status, call)
        if route.ssl_context is not None:
            await connection.start_tls(route.ssl_context, route.url.host)


async def _drop_all(idle: List[_Connection]) -> None:
    """Drop the idle connections of one event loop; the client may be under another by now."""
    is_any = bool(idle)
    while idle:
        idle.pop().abort()
    if is_any:
        await asyncio.sleep(0)  # the loop closes an aborted socket on its next round


async def _open(host: str, port: int, call: Call) -> _Connection:
    """Try each address of the host, none longer than its share of the time left."""
    loop = asyncio.get_running_loop()
    addresses = await resolve_async(host, port)
    fault: Optional[BaseException] = None
    for number, (family, address) in enumerate(addresses):
        attempt = call.limited(call.remaining_s() / (len(addresses) - number))
        # Our own: loop.create_connection loses a socket when it is cancelled at the wrong moment.
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            async with deadline_of(attempt):
                await loop.sock_connect(sock, address)
        except (OSError, DeadlineExceededError) as error:
            sock.close()
            fault = error
        except BaseException:
            sock.close()
            raise
        else:
            return await _adopted(sock)
    raise fault or OSError("the host has no address")


async def _adopted(sock: socket.socket) -> _Connection:
    """Have the event loop read a connected socket; it closes the socket, cancelled or not."""
    connection = _Connection(sock)
    await asyncio.get_running_loop().create_connection(lambda: connection, sock=sock)
    return connection
