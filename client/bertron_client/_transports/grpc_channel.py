"""What a gRPC channel is opened with, and when a process can use gRPC at all."""

from __future__ import annotations

import os
import threading
from typing import Any, Dict, List, Tuple

from .._tracing import trace_headers
from .._wire.tensors import MAX_ANSWER_BYTES
from .base import Options, Url

# Before gRPC is imported: without it a forked child of a process that has used gRPC cannot.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "1")

import grpc
from tritonclient.grpc import service_pb2_grpc


class ForkGuard:
    """Counts what a fork must not meet, to tell in the child whether gRPC came through it.

    gRPC prepares itself for a fork only when no thread is inside it and no asyncio channel is
    open; in the child of any other fork its calls may never end, not even at their deadlines.
    """

    def __init__(self) -> None:
        self._count = 0
        self._lock = threading.Lock()
        self._is_lost = False
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    def _after_fork(self) -> None:
        self._is_lost = self._is_lost or self._count > 0
        self._count = 0
        self._lock = threading.Lock()  # a thread that is not here may have held the other

    def begin(self) -> None:
        """Say that a call, or the life of an asyncio channel, begins.

        Raises:
            RuntimeError: gRPC cannot work in this process.
        """
        if self._is_lost:
            raise RuntimeError(
                "this process was forked while another thread was in a gRPC call or an "
                "AsyncClient was open over gRPC, after which gRPC cannot work in it; close the "
                "AsyncClient before, use an http:// url, or start processes by spawn"
            )
        with self._lock:
            self._count += 1

    def end(self) -> None:
        """Say that it has ended."""
        with self._lock:
            self._count -= 1

    def __enter__(self) -> None:
        self.begin()

    def __exit__(self, *_: object) -> None:
        self.end()


FORK_GUARD = ForkGuard()


def channel_options(options: Options) -> List[Tuple[str, Any]]:
    """Return gRPC's channel arguments."""
    return [
        ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
        ("grpc.max_send_message_length", -1),  # the limits on texts are the server's
        # A server that comes back is found within half a second, not after gRPC's 120.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 500),
        # Also the limit of one attempt to connect.
        ("grpc.min_reconnect_backoff_ms", max(1, int(options.connect_timeout_s * 1000))),
        ("grpc.use_local_subchannel_pool", 1),  # no connection shared with another client's backoff
        ("grpc.enable_http_proxy", 0),  # the url says where to go
    ]


def open_channel(module: Any, url: Url, options: Options) -> Tuple[Any, Any]:
    """Return a channel and its stub.

    Args:
        module: ``grpc`` or ``grpc.aio``.
        url: The server's.
        options: How to connect.
    """
    arguments = channel_options(options)
    if options.tls is not None:
        credentials = options.tls.grpc_credentials()
        channel = module.secure_channel(url.netloc, credentials, options=arguments)
    else:
        channel = module.insecure_channel(url.netloc, options=arguments)
    return channel, service_pb2_grpc.GRPCInferenceServiceStub(channel)


def call_arguments(options: Options, timeout_s: float) -> Dict[str, Any]:
    """Return what every call is made with besides its message."""
    return {
        "timeout": timeout_s,
        "metadata": tuple({**options.headers, **trace_headers()}.items()),
        "compression": grpc.Compression.Gzip if options.compression else None,
    }
