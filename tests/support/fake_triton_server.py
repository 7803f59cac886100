"""A small KServe v2 server for tests: HTTP and gRPC on loopback, right or wrong on demand.

Vectors are a function of the text alone, so a test can tell whose row it got.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

EMBEDDING_SIZE = 16
MAX_TOKENS = 12
MAX_CHARACTERS = 1000
VERSION = "2.51.0-fake"
MODEL = "text_embedding"


def vector_of(text: str, pair: str | None = None) -> np.ndarray:
    """The unit vector [E] that the server answers for a text."""
    seed = hashlib.sha256(repr((text, pair)).encode("utf-8")).digest()[:8]
    vector = np.random.default_rng(int.from_bytes(seed, "little")).standard_normal(EMBEDDING_SIZE)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def tokens_of(text: str) -> int:
    """Words and two special tokens."""
    return len(text.split()) + 2


class RefusalError(Exception):
    """An error answer: HTTP status and text."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass
class Request:
    """What came in."""

    texts: list[str]
    pairs: list[str] | None
    parameters: dict[str, object]


@dataclass
class Behaviour:
    """What the server does with the next inference requests; change it at any time."""

    delay_s: float = 0.0
    fault: str | None = None  # see _refusals and answer()
    only_texts_with: str = ""  # the fault strikes requests with such a text
    close_after_answer: bool = False  # HTTP: close the connection without having said so
    max_batch_size: int = 8
    embedding_size: int = EMBEDDING_SIZE
    is_ready: bool = True
    requests: list[Request] = field(default_factory=list)
    config_requests: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    released: threading.Event = field(default_factory=threading.Event)  # ends "never"

    def strikes(self, request: Request) -> bool:
        return self.fault is not None and any(self.only_texts_with in t for t in request.texts)


_REFUSALS = {
    "busy": (503, "in ensemble 'text_embedding', Exceeds maximum queue size"),
    "expired": (503, "in ensemble 'text_embedding', Request timeout expired"),
    "stopping": (503, "Server is stopping, scheduler for model has stopped accepting requests"),
    "internal": (500, "in ensemble 'text_embedding', the forward failed"),
    "invalid": (400, "in ensemble 'text_embedding', text 0 is not to my liking"),
    "vague": (400, "in ensemble 'text_embedding', something is not right"),
}


def answer(request: Request, behaviour: Behaviour) -> list[tuple[str, str, list[int], bytes]]:
    """Name, datatype, shape and bytes of each output."""
    fault = behaviour.fault if behaviour.strikes(request) else None
    time.sleep(behaviour.delay_s)
    if fault == "never":
        behaviour.released.wait(60)
    if fault in _REFUSALS:
        raise RefusalError(*_REFUSALS[fault])
    if len(request.texts) > behaviour.max_batch_size:
        raise RefusalError(400, f"batch-size must be <= {behaviour.max_batch_size}")
    counts = [tokens_of(text) for text in request.texts]
    for index, count in enumerate(counts):
        if request.parameters.get("truncate") == "error" and count > MAX_TOKENS:
            raise RefusalError(
                400,
                f"in ensemble '{MODEL}', text {index} has {count} tokens, the model takes at most "
                f'{MAX_TOKENS}; shorten it or pass truncate="right"',
            )
    pairs = request.pairs or [None] * len(request.texts)
    size = behaviour.embedding_size
    rows = [np.resize(vector_of(t, p), size) for t, p in zip(request.texts, pairs, strict=True)]
    vectors = np.array(rows, dtype="<f4").reshape(-1, size)
    if fault == "nan":
        vectors[-1, 3] = np.nan
    if fault == "mixed_up":
        vectors = np.roll(vectors, 1, axis=1)
    if fault == "wrong_count":
        vectors = vectors[:-1]
    datatype = "FP64" if fault == "wrong_dtype" else "FP32"
    data = vectors.astype("<f8" if fault == "wrong_dtype" else "<f4").tobytes()
    if fault == "short_data":
        data = data[:-4]
    outputs = [
        ("EMBEDDING", datatype, list(vectors.shape), data),
        (
            "TOKEN_COUNT",
            "INT32",
            [len(counts), 1],
            np.minimum(counts, MAX_TOKENS).astype("<i4").tobytes(),
        ),
        (
            "TRUNCATED",
            "BOOL",
            [len(counts), 1],
            (np.array(counts) > MAX_TOKENS).tobytes(),
        ),
    ]
    return outputs[:1] if fault == "missing_output" else outputs


def _strings(data: bytes) -> list[str]:
    """Elements of a BYTES tensor in its binary form."""
    strings, offset = [], 0
    while offset < len(data):
        (length,) = struct.unpack_from("<I", data, offset)
        strings.append(data[offset + 4 : offset + 4 + length].decode("utf-8"))
        offset += 4 + length
    return strings


@contextlib.contextmanager
def _counted(behaviour: Behaviour, request: Request):
    with behaviour.lock:
        behaviour.requests.append(request)
        behaviour.in_flight += 1
        behaviour.most_in_flight = max(behaviour.most_in_flight, behaviour.in_flight)
    try:
        yield
    finally:
        with behaviour.lock:
            behaviour.in_flight -= 1


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # header and body in one packet
    server: _HttpServer

    def log_message(self, *args: object) -> None:
        pass

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()
        if self.server.behaviour.close_after_answer:
            self.close_connection = True

    def _send_json(self, status: int, value: object) -> None:
        self._send(status, json.dumps(value).encode())

    def do_GET(self) -> None:
        behaviour = self.server.behaviour
        if self.path == "/v2":
            self._send_json(200, {"name": "triton", "version": VERSION, "extensions": []})
        elif self.path == f"/v2/models/{MODEL}/ready":
            self._send(200 if behaviour.is_ready else 400, b"")
        elif self.path == f"/v2/models/{MODEL}/config":
            behaviour.config_requests += 1
            self._send_json(
                200,
                {
                    "name": MODEL,
                    "max_batch_size": behaviour.max_batch_size,
                    "output": [
                        {"name": "EMBEDDING", "dims": [behaviour.embedding_size]},
                        {"name": "TOKEN_COUNT", "dims": [1]},
                        {"name": "TRUNCATED", "dims": [1]},
                    ],
                    "parameters": {
                        "max_tokens_per_text": {"string_value": str(MAX_TOKENS)},
                        "max_characters_per_text": {"string_value": str(MAX_CHARACTERS)},
                    },
                },
            )
        else:
            self._send_json(404, {"error": "Request for unknown model: 'it' is not found"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != f"/v2/models/{MODEL}/infer":
            self._send_json(404, {"error": "Request for unknown model: 'it' is not found"})
            return
        offset = int(self.headers["Inference-Header-Content-Length"])
        header = json.loads(body[:offset])
        tensors = {}
        for tensor in header["inputs"]:
            size = tensor["parameters"]["binary_data_size"]
            tensors[tensor["name"]] = _strings(body[offset : offset + size])
            assert tensor["shape"] == [len(tensors[tensor["name"]]), 1]
            offset += size
        assert offset == len(body)
        request = Request(tensors["TEXT"], tensors.get("TEXT_PAIR"), header["parameters"])
        behaviour = self.server.behaviour
        with _counted(behaviour, request):
            try:
                outputs = answer(request, behaviour)
            except RefusalError as refusal:
                self._send_json(refusal.status, {"error": refusal.message})
                return
            if behaviour.strikes(request) and self._misbehave(behaviour.fault or ""):
                return
        json_part = json.dumps(
            {
                "model_name": MODEL,
                "outputs": [
                    {
                        "name": name,
                        "datatype": datatype,
                        "shape": shape,
                        "parameters": {"binary_data_size": len(data)},
                    }
                    for name, datatype, shape, data in outputs
                ],
            }
        ).encode()
        self._send(
            200,
            json_part + b"".join(data for *_, data in outputs),
            {"Inference-Header-Content-Length": str(len(json_part))},
        )

    def _misbehave(self, fault: str) -> bool:
        """Faults of HTTP itself; True when the connection is done for."""
        if fault == "not_json":
            self._send(200, b"<html>welcome</html>")
            return True
        if fault == "cut_off":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nonly this")
        elif fault == "huge":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\n")
            self.wfile.flush()
            with contextlib.suppress(OSError):
                for _ in range(200):
                    self.wfile.write(bytes(1024 * 1024))
        elif fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        else:
            return False
        self.close_connection = True
        return True


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, behaviour: Behaviour, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.behaviour = behaviour
        self.connections: set[socket.socket] = set()

    def get_request(self):
        connection, address = super().get_request()
        self.connections.add(connection)
        return connection, address

    def handle_error(self, request, client_address) -> None:
        pass  # clients of these tests hang up early

    def server_close(self) -> None:
        super().server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


_GRPC_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
}


class _Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour

    def _known(self, name: str, context) -> None:
        if name != MODEL:
            message = f"Request for unknown model: '{name}' is not found"
            context.abort(grpc.StatusCode.NOT_FOUND, message)

    def ServerMetadata(self, request, context):  # noqa: N802, ARG002
        return service_pb2.ServerMetadataResponse(name="triton", version=VERSION)

    def ModelReady(self, request, context):  # noqa: N802
        self._known(request.name, context)
        return service_pb2.ModelReadyResponse(ready=self.behaviour.is_ready)

    def ModelConfig(self, request, context):  # noqa: N802
        self._known(request.name, context)
        self.behaviour.config_requests += 1
        response = service_pb2.ModelConfigResponse()
        response.config.name = MODEL
        response.config.max_batch_size = self.behaviour.max_batch_size
        response.config.output.add(name="EMBEDDING", dims=[self.behaviour.embedding_size])
        response.config.output.add(name="TOKEN_COUNT", dims=[1])
        response.config.output.add(name="TRUNCATED", dims=[1])
        response.config.parameters["max_tokens_per_text"].string_value = str(MAX_TOKENS)
        response.config.parameters["max_characters_per_text"].string_value = str(MAX_CHARACTERS)
        return response

    def ModelInfer(self, request, context):  # noqa: N802
        self._known(request.model_name, context)
        tensors = {
            tensor.name: _strings(request.raw_input_contents[number])
            for number, tensor in enumerate(request.inputs)
        }
        parameters = {
            key: getattr(value, value.WhichOneof("parameter_choice"))
            for key, value in request.parameters.items()
        }
        came = Request(tensors["TEXT"], tensors.get("TEXT_PAIR"), parameters)
        with _counted(self.behaviour, came):
            try:
                outputs = answer(came, self.behaviour)
            except RefusalError as refusal:
                context.abort(_GRPC_CODES[refusal.status], refusal.message)
        response = service_pb2.ModelInferResponse(model_name=MODEL)
        for name, datatype, shape, data in outputs:
            response.outputs.add(name=name, datatype=datatype, shape=shape)
            response.raw_output_contents.append(data)
        return response


class FakeTritonServer:
    """Both protocols over one behaviour."""

    def __init__(self, *, http_port: int = 0, grpc_port: int = 0) -> None:
        self.behaviour = Behaviour()
        self._http = _HttpServer(self.behaviour, http_port)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._pool = ThreadPoolExecutor(64, thread_name_prefix="fake-server")
        self._grpc = grpc.server(self._pool, options=[("grpc.so_reuseport", 0)])
        servicer = _Servicer(self.behaviour)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, self._grpc)
        self._grpc_port = self._grpc.add_insecure_port(f"127.0.0.1:{grpc_port}")

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    @property
    def grpc_url(self) -> str:
        return f"grpc://127.0.0.1:{self._grpc_port}"

    def url(self, protocol: str) -> str:
        return self.http_url if protocol == "http" else self.grpc_url

    def __enter__(self) -> FakeTritonServer:
        self._thread.start()
        self._grpc.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.behaviour.released.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
        self._grpc.stop(0).wait()
        self._pool.shutdown(wait=True)


class RawServer:
    """A TCP server below any protocol: "never", "garbage", "reset", "close" or "trickle".

    "trickle" begins as the protocol demands and then sends a byte every 50 ms.
    """

    def __init__(self, fault: str, protocol: str = "http") -> None:
        self._fault = fault
        self._protocol = protocol
        self._stopped = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    @property
    def url(self) -> str:
        return f"{self._protocol}://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> RawServer:
        self._threads[0].start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            if self._fault == "reset":
                connection.recv(1)
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                return
            if self._fault == "close":
                connection.recv(65536)
                return
            if self._fault == "garbage":
                connection.sendall(b"\x00\x07 not the protocol you are looking for \r\n" * 50)
            if self._fault == "trickle":
                if self._protocol == "http":
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{")
                else:  # an HTTP/2 SETTINGS frame, and then frames of an unknown type, byte by byte
                    connection.sendall(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
                while not self._stopped.wait(0.05):
                    byte = b" " if self._protocol == "http" else b"\x00"
                    connection.sendall(byte)
            self._stopped.wait()


def closed_port_url(protocol: str) -> str:
    """A url where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"{protocol}://127.0.0.1:{listener.getsockname()[1]}"
