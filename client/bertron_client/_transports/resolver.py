"""Addresses of a host. Only the system can look a name up, and it knows no time limit."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from typing import Any, Callable, List, Tuple, Union

Addresses = List[Tuple[int, Any]]  # family, and what a socket of it connects to
_Outcome = Union[Addresses, Exception]


def resolve(host: str, port: int, timeout_s: float) -> Addresses:
    """Return the addresses of a host.

    Raises:
        OSError: It has none, or they were not found in time.
    """
    try:
        return _look_up(host, port, socket.AI_NUMERICHOST)
    except (socket.gaierror, UnicodeError):  # UnicodeError: no name that DNS could hold
        pass
    outcomes: List[_Outcome] = []
    _look_up_aside(host, port, outcomes.append).join(timeout_s)
    if not outcomes:
        raise socket.timeout(f"{host} was not resolved within {timeout_s:g} s")
    return _addresses(host, outcomes[0])


async def resolve_async(host: str, port: int) -> Addresses:
    """Return the addresses of a host; when cancelled, the search is left to itself.

    Not by the event loop's own threads: those may all be busy, and the loop's end waits for them.

    Raises:
        OSError: It has none.
    """
    try:
        return _look_up(host, port, socket.AI_NUMERICHOST)
    except (socket.gaierror, UnicodeError):
        pass
    loop = asyncio.get_running_loop()
    found: "asyncio.Future[_Outcome]" = loop.create_future()

    def settle(outcome: _Outcome) -> None:
        if not found.done():
            found.set_result(outcome)

    def deliver(outcome: _Outcome) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop has been closed meanwhile
            loop.call_soon_threadsafe(settle, outcome)

    _look_up_aside(host, port, deliver)
    return _addresses(host, await found)


def _look_up_aside(host: str, port: int, deliver: Callable[[_Outcome], object]) -> threading.Thread:
    """Look a name up in a thread, which gives ``deliver`` what it found and never holds an exit."""

    def work() -> None:
        try:
            outcome: _Outcome = _look_up(host, port, 0)
        except (OSError, UnicodeError) as error:
            outcome = error
        deliver(outcome)

    thread = threading.Thread(target=work, name="bertron-resolve", daemon=True)
    thread.start()
    return thread


def _look_up(host: str, port: int, flags: int) -> Addresses:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return [(family, address) for family, _, _, _, address in found]


def _addresses(host: str, outcome: _Outcome) -> Addresses:
    if isinstance(outcome, Exception):
        raise OSError(f"{host} cannot be resolved: {outcome}")
    return outcome
