"""KServe v2 over HTTP/1.1, on the standard library.

tritonclient's HTTP client runs on gevent and knows no limit for a whole call, so a server that
sends a byte now and then holds it for ever. Here the socket's timeout is set from the call's
deadline before each read. It works the same when gevent has replaced the standard sockets.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import socket
import threading
from typing import Any, Dict, List, Mapping, NamedTuple, NoReturn, Optional, Tuple, Type
from urllib.parse import quote

from .._call import Call
from .._codec import (
    HEADER_LENGTH,
    MAX_ANSWER_BYTES,
    Output,
    Request,
    http_infer_body,
    http_infer_outputs,
)
from .._exceptions import (
    BertronError,
    InvalidInputError,
    ModelNotFoundError,
    OverloadedError,
    ProtocolError,
    ServerError,
    ServerUnavailableError,
    error_from_server,
)
from .base import Url

MAX_IDLE_CONNECTIONS = 32  # kept open between calls; more threads than this pay a new connection

# We map to the most specific error the status allows; what is not listed is a ServerError from
# 500 on and a ProtocolError below.
_ERRORS: Dict[int, Type[BertronError]] = {
    400: InvalidInputError,
    404: ModelNotFoundError,
    413: InvalidInputError,
    422: InvalidInputError,
    429: OverloadedError,
    502: ServerUnavailableError,
    503: ServerUnavailableError,
    504: ServerUnavailableError,
}


class _Answer(NamedTuple):
    status: int
    header_length: Optional[str]
    body: bytes


class _StaleConnectionError(Exception):
    """The server had closed this kept connection before it read the request."""


class _DeadlineReader(io.RawIOBase):
    """Reads from a socket, never longer than the call may take."""

    def __init__(self, sock: socket.socket, call: Call) -> None:
        self._sock = sock
        self._call = call

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(self._call.remaining_s())
        return self._sock.recv_into(buffer)


class _DeadlineSocket:
    """The part of a socket that http.client uses, under the deadline of the current call."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.call: Optional[Call] = None

    def _current_call(self) -> Call:
        if self.call is None:
            raise RuntimeError("connection used outside a call")
        return self.call

    def sendall(self, data: bytes) -> None:
        # CPython's sendall takes the timeout as the limit of the whole send.
        self._sock.settimeout(self._current_call().remaining_s())
        self._sock.sendall(data)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_DeadlineReader(self._sock, self._current_call()))

    def abort(self) -> None:
        """Wake a thread that waits on this socket."""
        with contextlib.suppress(OSError):  # it was closed or lost meanwhile
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._sock.close()


class _Connection:
    """One kept-alive connection."""

    def __init__(self, url: Url, sock: socket.socket) -> None:
        self._sock = _DeadlineSocket(sock)
        self._http = http.client.HTTPConnection(url.host, url.port)
        self._http.auto_open = 0
        self._http.sock = self._sock  # it has the methods that http.client calls
        self._is_used = False
        self.is_reusable = False

    def exchange(
        self, method: str, path: str, body: Optional[bytes], headers: Dict[str, str], call: Call
    ) -> _Answer:
        """Send one request and read its answer; ``is_reusable`` says whether another may follow."""
        is_first, self._is_used, self.is_reusable = not self._is_used, True, False
        self._sock.call = call
        with call.abortable(self._sock.abort):
            try:
                self._http.request(method, path, body=body, headers=headers)
                response = self._http.getresponse()
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError) as error:
                if is_first or call.is_cancelled:
                    raise
                raise _StaleConnectionError from error
            with response:
                # Not read at all when announced too large; one byte more tells when unannounced.
                is_too_large = (response.length or 0) > MAX_ANSWER_BYTES
                content = b"" if is_too_large else response.read(MAX_ANSWER_BYTES + 1)
                if is_too_large or len(content) > MAX_ANSWER_BYTES:
                    raise ProtocolError(
                        f"the answer is larger than {MAX_ANSWER_BYTES} bytes ({call.where})"
                    )
                if response.length:
                    raise http.client.IncompleteRead(content, response.length)
                self.is_reusable = not response.will_close
                return _Answer(response.status, response.getheader(HEADER_LENGTH), content)

    def close(self) -> None:
        self._http.close()


class HttpTransport:
    """Connections are opened when needed and kept for the next call."""

    def __init__(self, url: Url) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._idle: List[_Connection] = []
        self._is_closed = False

    def infer(self, model: str, request: Request, call: Call) -> Dict[str, Output]:
        """Return the output tensors, unchecked."""
        body, header_length = http_infer_body(request, int(call.remaining_s() * 1e6))
        headers = {
            "Content-Type": "application/octet-stream",
            HEADER_LENGTH: str(header_length),
        }
        answer = self._request("POST", f"/v2/models/{quote(model)}/infer", call, body, headers)
        return http_infer_outputs(answer.body, answer.header_length)

    def is_model_ready(self, model: str, call: Call) -> bool:
        """Whether the server says that the model answers requests."""
        self._request("GET", f"/v2/models/{quote(model)}/ready", call)
        return True

    def model_config(self, model: str, call: Call) -> Mapping[str, Any]:
        """Return Triton server's ModelConfig in its JSON form."""
        return self._get_json(f"/v2/models/{quote(model)}/config", call)

    def server_version(self, call: Call) -> str:
        """Return the version that the server names."""
        return str(self._get_json("/v2", call).get("version", "unknown"))

    def close(self) -> None:
        """Drop every idle connection; one in use is dropped when its call ends."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _get_json(self, path: str, call: Call) -> Mapping[str, Any]:
        answer = self._request("GET", path, call)
        try:
            value = json.loads(answer.body)
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"{path} did not answer JSON: {error} ({call.where})") from error
        if not isinstance(value, dict):
            raise ProtocolError(
                f"{path} answered {type(value).__name__}, an object is wanted ({call.where})"
            )
        return value

    def _request(
        self,
        method: str,
        path: str,
        call: Call,
        body: Optional[bytes] = None,
        headers: Optional[Dict[str, str]] = None,
    ) -> _Answer:
        """Exchange one request and answer, and turn every fault into ours."""
        try:
            answer = self._exchange(method, path, body, headers or {}, call)
        except BertronError:
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            _raise_from(error, call)
        if answer.status == 200:
            return answer
        fallback = ServerError if answer.status >= 500 else ProtocolError
        raise error_from_server(
            _ERRORS.get(answer.status, fallback),
            _error_text(answer),
            f"HTTP {answer.status} from {call.where}",
        )

    def _exchange(
        self, method: str, path: str, body: Optional[bytes], headers: Dict[str, str], call: Call
    ) -> _Answer:
        """Use a kept connection, and a new one if the server has closed that meanwhile."""
        connection = self._take() or self._connect(call)
        try:
            try:
                return connection.exchange(method, path, body, headers, call)
            except _StaleConnectionError:
                connection.close()
                connection = self._connect(call)
                return connection.exchange(method, path, body, headers, call)
        finally:
            self._give_back(connection)

    def _take(self) -> Optional[_Connection]:
        with self._lock:
            if self._is_closed:
                raise RuntimeError("the client is closed")
            return self._idle.pop() if self._idle else None

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
        """Try each address of the host, none longer than its share of the time left."""
        addresses = _resolve(self._url, call)
        fault: Optional[OSError] = None
        for number, (family, address) in enumerate(addresses):
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.settimeout(call.remaining_s() / (len(addresses) - number))
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return _Connection(self._url, sock)
            except OSError as error:
                sock.close()
                fault = error
            except BaseException:
                sock.close()
                raise
        raise fault or OSError("the host has no address")


def _resolve(url: Url, call: Call) -> List[Tuple[int, Any]]:
    """Addresses of the host; a name is looked up aside, since a look-up knows no time limit."""
    try:
        return _lookup(url, socket.AI_NUMERICHOST)
    except socket.gaierror:
        pass
    result: List[Any] = []

    def look_up() -> None:
        try:
            result.append(_lookup(url, 0))
        except OSError as error:
            result.append(error)

    thread = threading.Thread(target=look_up, name="bertron-resolve", daemon=True)
    thread.start()
    thread.join(call.remaining_s())
    if not result:
        raise call.exceeded()
    if isinstance(result[0], OSError):
        raise result[0]
    addresses: List[Tuple[int, Any]] = result[0]
    return addresses


def _lookup(url: Url, flags: int) -> List[Tuple[int, Any]]:
    found = socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM, flags=flags)
    return [(family, address) for family, _, _, _, address in found]


def _raise_from(error: Exception, call: Call) -> NoReturn:
    """Raise what a fault of the connection means to the caller."""
    if isinstance(error, socket.timeout):
        raise call.exceeded() from error
    if isinstance(error, http.client.IncompleteRead):
        raise ServerUnavailableError(
            f"the connection ended after {len(error.partial)} bytes of an answer ({call.where})"
        ) from error
    if isinstance(error, OSError):
        reason = error.strerror or str(error) or type(error).__name__
        raise ServerUnavailableError(f"{reason} ({call.where})") from error
    raise ProtocolError(
        f"the answer is not HTTP: {type(error).__name__}: {str(error)[:200]!r} ({call.where})"
    ) from error


def _error_text(answer: _Answer) -> str:
    """The reason in an error answer, JSON as Triton server sends it or anything else."""
    try:
        return str(json.loads(answer.body)["error"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return answer.body[:300].decode("utf-8", "replace")
