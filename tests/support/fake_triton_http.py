"""The fake server over HTTP: KServe v2 with binary tensors, in right, odd and wrong ways."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import socket
import ssl
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import fake_triton_memory as shared_memory
from fake_triton_http_faults import FAULTS, HEADER_LENGTH
from fake_triton_model import (
    Behaviour,
    Output,
    RefusalError,
    Request,
    answer,
    model_config,
    model_metadata,
    model_statistics,
    server_metadata,
    strings_of,
)

# Ways to answer that a client must accept.
MANNERS = (
    "chunked",
    "continue",  # an interim answer first
    "early_hints",
    "connection_close",
    "http_1_0",
    "lower_case",  # names of headers
    "slow_head",
    "no_length",  # the answer ends with the connection
)
_M = "/v2/models/(?P<model>[^/]+)"
_REGION = "/v2/systemsharedmemory/region/(?P<region>[^/]+)"
_ROUTES = [
    ("GET", "/v2", "metadata"),
    ("GET", "/v2/health/(live|ready)", "health"),
    ("GET", "/v2/models/stats", "statistics"),
    ("GET", f"{_M}/stats", "statistics"),
    ("GET", f"{_M}/ready", "ready"),
    ("GET", f"{_M}/config", "config"),
    ("GET", _M, "model-metadata"),
    ("POST", f"{_M}/infer", "infer"),
    ("GET", "/v2/systemsharedmemory/status", "shared-memory"),
    ("GET", f"{_REGION}/status", "shared-memory"),
    ("POST", f"{_REGION}/(?P<action>register)", "shared-memory"),
    ("POST", f"{_REGION}/(?P<action>unregister)", "shared-memory"),
    ("POST", "/v2/systemsharedmemory/(?P<action>unregister)", "shared-memory"),
]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # header and body in one packet
    server: HttpServer

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    @property
    def behaviour(self) -> Behaviour:
        return self.server.behaviour

    def _serve(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            what, names = self._route(method)
            self.behaviour.admit(what, names.get("model"), headers)
            if headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            if what == "infer":
                self._infer(names["model"], headers, body)
            else:
                self._page(what, names, body)
        except RefusalError as refusal:
            retry_after = self.behaviour.retry_after_s
            extra = {}
            if retry_after is not None and refusal.status in (429, 503):
                extra["Retry-After"] = str(retry_after)
            self._send_json(refusal.status, {"error": refusal.message}, extra)

    def _route(self, method: str) -> tuple[str, dict[str, str]]:
        for wanted, pattern, what in _ROUTES:
            match = re.fullmatch(pattern, self.path)
            if match and method == wanted:
                return what, {k: unquote(v) for k, v in match.groupdict().items() if v}
        raise RefusalError(404, "Not Found")

    def _page(self, what: str, names: dict[str, str], body: bytes) -> None:
        behaviour, model = self.behaviour, names.get("model", "")
        if what == "ready":
            self._send(200 if behaviour.is_ready else 400, b"")
        elif what == "health":
            self._send(200, b"")
        elif what == "config":
            self._send_json(200, model_config(model, behaviour))
        elif what == "statistics":
            value = model_statistics(model or None, behaviour)
            if behaviour.numbers_as_strings:
                value = json.loads(json.dumps(value), parse_int=str)
            self._send_json(200, value)
        elif what == "shared-memory":
            self._shared_memory(names.get("action"), names.get("region"), body)
        elif what == "model-metadata":
            self._send_json(200, model_metadata(model, behaviour))
        else:
            self._send_json(200, server_metadata())

    def _shared_memory(self, action: str | None, region: str | None, body: bytes) -> None:
        if action is None:
            self._send_json(200, shared_memory.status(self.behaviour, region))
            return
        if action == "register":
            asked = json.loads(body)
            shared_memory.register(
                self.behaviour,
                str(region),
                asked["key"],
                asked.get("offset", 0),
                asked["byte_size"],
            )
        else:
            shared_memory.unregister(self.behaviour, region)
        self._send(200, b"")

    def _infer(self, model: str, headers: dict[str, str], body: bytes) -> None:
        length = int(headers.get(HEADER_LENGTH.lower(), len(body)))
        asked = json.loads(body[:length])
        tensors, offset = {}, length
        for tensor in asked["inputs"]:
            if "shared_memory_region" in tensor["parameters"]:
                data = shared_memory.read(self.behaviour, tensor["parameters"])
            else:
                size = tensor["parameters"]["binary_data_size"]
                data = body[offset : offset + size]
                offset += size
            tensors[tensor["name"]] = strings_of(data)
            if tensor["shape"] != [len(tensors[tensor["name"]]), 1]:
                raise RefusalError(400, f"shape {tensor['shape']} is not that of the data")
        if offset != len(body):
            raise RefusalError(400, f"{len(body) - offset} bytes too many")
        wanted = {
            output["name"]: output.get("parameters", {}) for output in asked.get("outputs", [])
        }
        request = Request(
            tensors["TEXT"],
            tensors.get("TEXT_PAIR"),
            asked.get("parameters", {}),
            model,
            list(wanted),
            headers,
        )
        with self.behaviour.taking(request):
            outputs = answer(request, self.behaviour)
            json_part, data = self._encode(model, outputs, wanted)
            if request.fault not in FAULTS:
                answer_headers = {
                    "Content-Type": "application/octet-stream",
                    HEADER_LENGTH: str(len(json_part)),
                }
                self._send(200, json_part + data, answer_headers)
            else:
                with contextlib.suppress(OSError):
                    FAULTS[request.fault](self, json_part, data)

    def _encode(self, model: str, outputs: list[Output], wanted: dict) -> tuple[bytes, bytes]:
        """The JSON and the binary part of an answer."""
        described, parts = [], []
        for output in outputs:
            parameters = wanted.get(output.name, {})
            if "shared_memory_region" in parameters:
                parameters = shared_memory.write(
                    self.behaviour, parameters, output.name, output.data
                )
            else:
                parameters = {"binary_data_size": len(output.data)}
                parts.append(output.data)
            described.append(
                {
                    "name": output.name,
                    "datatype": output.datatype,
                    "shape": output.shape,
                    "parameters": parameters,
                }
            )
        json_part = {"model_name": model, "model_version": "1", "outputs": described}
        return json.dumps(json_part).encode(), b"".join(parts)

    def _send_json(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self._send(status, body, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        headers = dict(headers or {})
        accepted = self.headers.get("Accept-Encoding", "")
        if self.behaviour.compresses and "gzip" in accepted and body:
            body = gzip.compress(body, 1)
            headers["Content-Encoding"] = "gzip"
        self._send_in_manner(status, body, headers, self.behaviour.http_manner)
        self.close_connection |= self.behaviour.close_after_answer

    def _send_in_manner(self, status: int, body: bytes, headers: dict, manner: str | None) -> None:
        if manner == "chunked":
            headers["Transfer-Encoding"] = "chunked"
            chunks = [body[start : start + 100] for start in range(0, len(body), 100)]
            body = b"".join(b"%x;a=b\r\n%s\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"
        elif manner != "no_length":
            headers["Content-Length"] = str(len(body))
        if manner in ("connection_close", "no_length"):
            headers["Connection"] = "close"
        head = self.head(status, headers, "HTTP/1.0" if manner == "http_1_0" else "HTTP/1.1")
        if manner == "lower_case":
            start, _, rest = head.partition(b"\r\n")
            head = start + b"\r\n" + rest.lower()
        interim = {
            "continue": b"HTTP/1.1 100 Continue\r\n\r\n",
            "early_hints": b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n",
        }
        head = interim.get(manner or "", b"") + head
        if manner == "slow_head":
            for start in range(0, len(head), 30):
                self.write(head[start : start + 30])
                time.sleep(0.005)
            head = b""
        self.write(head + body)
        self.close_connection |= manner in ("connection_close", "http_1_0", "no_length")

    def head(self, status: int, headers: dict[str, str], version: str = "HTTP/1.1") -> bytes:
        lines = [f"{version} {status} {self.responses.get(status, ('Odd',))[0]}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode()

    def write(self, data: bytes) -> None:
        self.wfile.write(data)
        self.wfile.flush()


class HttpServer(ThreadingHTTPServer):
    """Accepts connections, each with a thread of its own."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, behaviour: Behaviour, port: int, tls: ssl.SSLContext | None) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.behaviour = behaviour
        self._tls = tls
        self._connections: set[socket.socket] = set()

    def finish_request(self, request, client_address) -> None:
        """Serve a connection to its end, in its own thread."""
        if self._tls is not None:
            request.settimeout(10)  # the handshake
            request = self._tls.wrap_socket(request, server_side=True)
            request.settimeout(None)
        with self.behaviour.lock:
            self.behaviour.connections_accepted += 1
            self.behaviour.connections_open += 1
            self._connections.add(request)
        try:
            super().finish_request(request, client_address)
        finally:
            with self.behaviour.lock:
                self.behaviour.connections_open -= 1
                self._connections.discard(request)
            if self._tls is not None:
                self.shutdown_request(request)  # the caller does it for the socket below, now empty

    def handle_error(self, request, client_address) -> None:
        pass  # clients of these tests hang up early

    def server_close(self) -> None:
        super().server_close()
        with self.behaviour.lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
