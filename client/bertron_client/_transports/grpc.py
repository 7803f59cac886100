"""gRPC for threads, on the stubs that tritonclient brings.

gRPC keeps the deadline of a call by itself, connecting included, whatever the peer does.
"""

from __future__ import annotations

import threading
from typing import Any

import grpc

from .._call import Call, CallCancelledError
from .._exceptions import BertronError
from .._wire import grpc as wire
from .._wire.operations import Operation
from .base import Options, Url
from .grpc_channel import FORK_GUARD, call_arguments, open_channel


class GrpcTransport:
    """One channel, which multiplexes all calls."""

    def __init__(self, url: Url, options: Options) -> None:
        self._url = url
        self._options = options
        self._lock = threading.Lock()
        self._is_closed = False
        self._channel: Any = None
        self._stub: Any = None

    def perform(self, operation: Operation, call: Call) -> Any:
        """Return the operation's result."""
        method, message = wire.encode(operation, call.remaining_us)
        with FORK_GUARD:
            answer = self._rpc(getattr(self._opened_stub(), method), message, call)
        return wire.decode(operation, answer, call.where)

    def close(self) -> None:
        """Drop the channel; a call in flight on it ends at once."""
        with self._lock:
            self._is_closed = True
            channel, self._channel, self._stub = self._channel, None, None
        if channel is not None:
            channel.close()

    def forget(self) -> None:
        """Open another channel for the next call: this process has no threads for the old one."""
        self._lock = threading.Lock()  # a thread that is not here may have held the other
        self._channel = self._stub = None

    def _opened_stub(self) -> Any:
        with self._lock:
            if self._is_closed:
                raise RuntimeError("the client is closed")
            if self._stub is None:
                self._channel, self._stub = open_channel(grpc, self._url, self._options)
            return self._stub

    def _rpc(self, method: Any, message: Any, call: Call) -> Any:
        """Do one call, and turn every fault into ours."""
        arguments = call_arguments(self._options, call.remaining_s())
        try:
            if not call.has_siblings:
                return method(message, **arguments)
            future = method.future(message, **arguments)
            with call.abortable(future.cancel):
                return future.result()
        except grpc.FutureCancelledError as error:
            raise CallCancelledError(f"cancelled ({call.where})") from error
        except grpc.RpcError as error:
            raise _error_from(error, call) from error
        except ValueError as error:  # gRPC's word for a closed channel, among others
            if not self._is_closed:
                raise
            raise RuntimeError("the client is closed") from error


def _error_from(error: Any, call: Call) -> BertronError:
    """Return what a failed call means to the caller."""
    code = error.code()
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return call.exceeded()
    if code == grpc.StatusCode.CANCELLED and call.is_cancelled:
        return CallCancelledError(f"cancelled ({call.where})")
    return wire.error_of(error, call.where)
