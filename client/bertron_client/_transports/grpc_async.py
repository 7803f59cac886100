"""gRPC on an asyncio event loop, on the stubs that tritonclient brings."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from typing import Any, AsyncGenerator, List, Optional

import grpc
import grpc.aio

from .._call import Call
from .._wire import grpc as wire
from .._wire.operations import Operation
from .base import Options, Url
from .farewell import at_end_of_loop
from .grpc_channel import FORK_GUARD, call_arguments, open_channel


class AsyncGrpcTransport:
    """One channel, which multiplexes all calls of one event loop."""

    def __init__(self, url: Url, options: Options) -> None:
        self._url = url
        self._options = options
        self._is_closed = False
        self._process_id = os.getpid()
        self._channel: Any = None
        self._stub: Any = None
        self._farewell: Optional[AsyncGenerator[None, None]] = None

    async def perform(self, operation: Operation, call: Call) -> Any:
        """Return the operation's result."""
        method, message = wire.encode(operation, call.remaining_us)
        with FORK_GUARD:
            stub = self._opened_stub()
            try:
                rpc = getattr(stub, method)(
                    message, **call_arguments(self._options, call.remaining_s())
                )
                answer = await _outcome(rpc)
            except (grpc.aio.UsageError, _DroppedError) as error:  # closed by another task
                raise RuntimeError("the client is closed") from error
            except grpc.RpcError as error:
                if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise call.exceeded() from error
                raise wire.error_of(error, call.where) from error
        return wire.decode(operation, answer, call.where)

    async def close(self) -> None:
        """Drop the channel; a call in flight on it ends at once."""
        self._is_closed = True
        farewell, self._farewell = self._farewell, None
        if farewell is not None:
            await farewell.aclose()

    def forget(self) -> None:
        """Open another channel for the next call: this one belongs to another event loop."""
        if os.getpid() != self._process_id:
            _parents.append(self._channel)
        elif self._channel is not None:  # its event loop went without a farewell
            FORK_GUARD.end()
        self._channel = self._stub = self._farewell = None

    async def _drop(self, channel: Any) -> None:
        """Close the channel, unless it has been forgotten: another loop's may have its place."""
        if channel is self._channel:
            self._channel = self._stub = None
            await channel.close()
            FORK_GUARD.end()

    def _opened_stub(self) -> Any:
        if self._is_closed:
            raise RuntimeError("the client is closed")
        if self._stub is None:
            FORK_GUARD.begin()
            self._process_id = os.getpid()
            self._channel, self._stub = open_channel(grpc.aio, self._url, self._options)
            self._farewell = at_end_of_loop(partial(self._drop, self._channel))
        return self._stub


class _DroppedError(Exception):
    """The channel was closed under an RPC."""


async def _outcome(rpc: Any) -> Any:
    """What an RPC gives.

    A task that awaits the RPC itself gets the same CancelledError whether it is cancelled or the
    RPC is. What ``gather`` returns tells them apart, also when both happen at once.
    """
    try:
        outcomes = await asyncio.gather(rpc, return_exceptions=True)
        is_dropped = isinstance(outcomes[0], asyncio.CancelledError)
        del outcomes  # or an error and this frame would hold each other
    except asyncio.CancelledError:
        rpc.cancel()
        raise
    if is_dropped:
        raise _DroppedError
    return await rpc


# Channels that came through a fork: taking one down there crashes or waits for ever.
_parents: List[Any] = []
