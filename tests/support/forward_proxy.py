"""A small HTTP forward proxy on loopback: http:// by absolute form, all else through CONNECT."""

from __future__ import annotations

import base64
import contextlib
import http.client
import selectors
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_HOP_BY_HOP = {"connection", "keep-alive", "proxy-authorization", "proxy-connection", "te"}


class ForwardProxy:
    """Counts what passes; ``fault`` is "refuses" (502), "forbids" (403), "hangs" or "garbage".

    With ``user`` it answers 407 to whom does not name it, and ``password``, in Basic form.
    """

    def __init__(self, *, user: str | None = None, password: str = "") -> None:
        self.fault: str | None = None
        self.user, self.password = user, password
        self.forwarded: list[str] = []  # "POST http://127.0.0.1:8000/v2/..."
        self.tunnels: list[str] = []  # "127.0.0.1:8000"
        self.unauthorised = 0
        self.bytes_sent = 0  # through tunnels, from the client on
        self.stopped = threading.Event()
        self._server = _ProxyServer(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.005,), name="fake-server-proxy", daemon=True
        )

    @property
    def url(self) -> str:
        """Where it is, without a user."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def url_for(self, user: str, password: str) -> str:
        """Where it is, for someone; both as they stand in a url."""
        return f"http://{user}:{password}@127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> ForwardProxy:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def lets_in(self, authorization: str | None) -> bool:
        """Whether a Proxy-Authorization header will do."""
        if self.user is None:
            return True
        wanted = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        return authorization == f"Basic {wanted}"


class _ProxyServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    proxy: ForwardProxy

    def handle_error(self, request, client_address) -> None:
        pass  # clients of these tests hang up early


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    server: _ProxyServer

    def log_message(self, *args: object) -> None:
        pass

    def _refused(self) -> bool:
        proxy = self.server.proxy
        if proxy.fault == "hangs":
            proxy.stopped.wait(60)
        if proxy.fault == "garbage":
            self.wfile.write(b"\x00\x07 no proxy here \r\n" * 10)
            self.close_connection = True
            return True
        status = {"refuses": 502, "forbids": 403}.get(proxy.fault or "")
        headers = {}
        if status is None and not proxy.lets_in(self.headers.get("Proxy-Authorization")):
            proxy.unauthorised += 1
            status, headers = 407, {"Proxy-Authenticate": 'Basic realm="proxy"'}
        if status is None:
            return False
        self._answer(status, headers, b"the proxy says no")
        return True

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_CONNECT(self) -> None:
        if self._refused():
            return
        host, _, port = self.path.rpartition(":")
        try:
            there = socket.create_connection((host.strip("[]"), int(port)), timeout=5)
        except OSError as error:
            self._answer(502, {}, str(error).encode())
            return
        self.server.proxy.tunnels.append(self.path)
        self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        self.wfile.flush()
        with there, contextlib.suppress(OSError):
            self._splice(there)
        self.close_connection = True

    def _splice(self, there: socket.socket) -> None:
        """Pass bytes both ways until either end closes."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.connection, selectors.EVENT_READ, there)
            selector.register(there, selectors.EVENT_READ, self.connection)
            while not self.server.proxy.stopped.is_set():
                for key, _ in selector.select(0.05):
                    data = key.fileobj.recv(65536)
                    if not data:
                        return
                    if key.fileobj is self.connection:
                        self.server.proxy.bytes_sent += len(data)
                    key.data.sendall(data)

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self._refused():
            return
        self.server.proxy.forwarded.append(f"{self.command} {self.path}")
        url = urlsplit(self.path)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP}
        there = http.client.HTTPConnection(url.hostname or "", url.port or 80, timeout=30)
        try:
            there.request(self.command, url.path, body, headers)
            answer = there.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._answer(502, {}, str(error).encode())
            return
        finally:
            there.close()
        kept = {
            name: value
            for name, value in answer.getheaders()
            if name.lower() not in {*_HOP_BY_HOP, "content-length", "transfer-encoding"}
        }
        self._answer(answer.status, kept, content)

    do_GET = do_POST = _forward  # noqa: N815
