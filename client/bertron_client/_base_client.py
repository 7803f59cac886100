"""What both clients are made of, I/O aside."""

from __future__ import annotations

import os
import threading
from typing import Any, Callable, Mapping, Optional

import numpy as np

from ._arguments import check_type, checked_whole_number
from ._call import Call, checked_timeout_s
from ._flows import Flows
from ._retry import RetryPolicy
from ._tls import Tls
from ._transports.base import Options, Url, make_options, parse_url

DEFAULT_TIMEOUT_S = 30.0
DEFAULT_CONNECT_TIMEOUT_S = 5.0
# Enough for the server's batcher to have requests waiting while others travel, and few enough that
# one caller with a long list does not fill the server's queue.
DEFAULT_REQUESTS_IN_FLIGHT = 4
CLOSE_TIMEOUT_S = 2.0  # for giving back what the server keeps for a client


class BaseClient:
    """Settings, checked once, and what is known of the server."""

    _forgetting = threading.Lock()  # of all clients; another one in a forked child

    def __init__(
        self,
        url: str,
        *,
        model: str,
        timeout_s: float,
        connect_timeout_s: float,
        max_requests_in_flight: int,
        retry: Optional[RetryPolicy],
        headers: Optional[Mapping[str, str]],
        token: Optional[str],
        compression: Optional[str],
        tls: Optional[Tls],
        proxy: Optional[str],
        shared_memory: bool,
        transport: Any,
        open_transport: Callable[[Url, Options], Any],
    ) -> None:
        self._url: Url = parse_url(url)
        if not model or not isinstance(model, str):
            raise ValueError(f"model is {model!r}, a name is wanted")
        in_flight = checked_whole_number("max_requests_in_flight", max_requests_in_flight)
        if in_flight < 1:
            raise ValueError(f"max_requests_in_flight is {in_flight}, it must be at least 1")
        check_type("retry", retry, "a RetryPolicy or None", RetryPolicy, type(None))
        check_type("shared_memory", shared_memory, "True or False", bool, np.bool_)
        if transport is not None and not hasattr(transport, "perform"):
            raise TypeError(
                f"transport is {type(transport).__name__}, an object with the method perform or "
                "None is wanted"
            )
        self._model = model
        self._timeout_s = checked_timeout_s(timeout_s)
        self._max_requests_in_flight = in_flight
        self._flows = Flows(
            str(self._url), model, retry or RetryPolicy(), _regions() if shared_memory else None
        )
        options = make_options(
            self._url,
            connect_timeout_s=checked_timeout_s(connect_timeout_s, "connect_timeout_s"),
            headers=headers,
            token=token,
            compression=compression,
            tls=tls,
            proxy=proxy,
        )
        self._transport = transport or open_transport(self._url, options)
        self._process_id = os.getpid()
        self._is_closed = False

    def _call(self, timeout_s: Optional[float]) -> Call:
        """Begin a call."""
        if self._is_closed:
            raise RuntimeError(f"the client is closed ({self._flows.where})")
        if os.getpid() != self._process_id:
            self._forget_parent()
        return Call(self._flows.where, self._timeout_s if timeout_s is None else timeout_s)

    def _forget_parent(self) -> None:
        """Let go of what is open: this process is a fork, and it belongs to the parent."""
        with BaseClient._forgetting:
            if os.getpid() != self._process_id:  # no other thread was first
                self._transport.forget()
                self._flows.forget()
                self._process_id = os.getpid()  # last: it lets the other threads go on

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({str(self._url)!r}, model={self._model!r}, "
            f"timeout_s={self._timeout_s:g})"
        )


def _after_fork() -> None:
    BaseClient._forgetting = threading.Lock()  # a thread that is not here may have held the other


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _regions() -> Any:
    if os.name != "posix":
        raise ValueError("shared_memory needs a POSIX system, as the server's own is one")
    from ._shared_memory import Regions

    return Regions()
