"""A small KServe v2 server for tests: HTTP and gRPC on loopback, right or wrong on demand.

What it computes is in fake_triton_model, the protocols in fake_triton_http and fake_triton_grpc.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
from fake_triton_grpc import Servicer
from fake_triton_http import HttpServer
from fake_triton_memory import unregister
from fake_triton_model import (
    EMBEDDING_SIZE,
    MAX_CHARACTERS,
    MAX_TOKENS,
    MODEL,
    VERSION,
    Behaviour,
    Request,
    tokens_of,
    vector_of,
)
from tritonclient.grpc import service_pb2_grpc

if TYPE_CHECKING:
    from tls_certificates import Identity

__all__ = [
    "EMBEDDING_SIZE",
    "MAX_CHARACTERS",
    "MAX_TOKENS",
    "MODEL",
    "VERSION",
    "Behaviour",
    "FakeTritonServer",
    "RawServer",
    "Request",
    "closed_port_url",
    "tokens_of",
    "vector_of",
]


class FakeTritonServer:
    """Both protocols over one behaviour; with ``tls`` https:// and grpcs://."""

    def __init__(
        self, *, http_port: int = 0, grpc_port: int = 0, tls: Identity | None = None
    ) -> None:
        self.behaviour = Behaviour()
        self._is_secure = tls is not None
        self._http = HttpServer(self.behaviour, http_port, tls and _ssl_context(tls))
        self._thread = threading.Thread(
            target=self._http.serve_forever, args=(0.005,), name="fake-server-http", daemon=True
        )
        self._pool = ThreadPoolExecutor(64, thread_name_prefix="fake-server")
        self._grpc = grpc.server(self._pool, options=[("grpc.so_reuseport", 0)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
            Servicer(self.behaviour), self._grpc
        )
        address = f"127.0.0.1:{grpc_port}"
        if tls is None:
            self._grpc_port = self._grpc.add_insecure_port(address)
        else:
            self._grpc_port = self._grpc.add_secure_port(address, _grpc_credentials(tls))

    @property
    def http_url(self) -> str:
        return f"http{'s' * self._is_secure}://127.0.0.1:{self._http.server_port}"

    @property
    def grpc_url(self) -> str:
        return f"grpc{'s' * self._is_secure}://127.0.0.1:{self._grpc_port}"

    def url(self, protocol: str) -> str:
        return self.http_url if protocol == "http" else self.grpc_url

    def __enter__(self) -> FakeTritonServer:
        self._thread.start()
        self._grpc.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.behaviour.release()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
        self._grpc.stop(0).wait()
        self._pool.shutdown(wait=True)
        unregister(self.behaviour, None)


def _ssl_context(tls: Identity) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tls.certificate, tls.key)
    if tls.client_roots is not None:
        context.load_verify_locations(tls.client_roots)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _grpc_credentials(tls: Identity) -> grpc.ServerCredentials:
    roots = tls.client_roots
    return grpc.ssl_server_credentials(
        [(tls.key.read_bytes(), tls.certificate.read_bytes())],
        None if roots is None else roots.read_bytes(),
        require_client_auth=roots is not None,
    )


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
            with contextlib.suppress(socket.timeout):
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
