"""Notices that a server has stopped serving, which Triton server itself does not say."""

import time
from collections.abc import Sequence

from bertron_server.server import TritonServer
from bertron_server.signs_of_life import LOOK_EVERY_S, SignsOfLife
from bertron_server.stub_processes import running_stubs

PROCESSES_EVERY_S = 1.0


class Watchdog:
    """Watches a server that is ready: its process, its models' processes, its answers.

    Args:
        server: Ready; all of its models' processes are there.
        ensembles: Those that embed ``TEXT``, to be asked when nobody else does.
        stall_timeout_s: How long an ensemble may answer nobody while a text waits.
    """

    def __init__(
        self, server: TritonServer, ensembles: Sequence[str], stall_timeout_s: float
    ) -> None:
        self._server = server
        self._stubs = running_stubs(server.pid)
        self._signs = [SignsOfLife(server.ask, name, stall_timeout_s) for name in ensembles]
        now = time.monotonic()
        self._next_processes = now
        self._next_signs = now + LOOK_EVERY_S

    def look(self) -> str | None:
        """Return why the server must be started again, or None; cheap where nothing is due."""
        if not self._server.is_alive():
            return f"the server ended by itself\n{self._server.failure()}"
        now = time.monotonic()
        if now >= self._next_processes:
            self._next_processes = now + PROCESSES_EVERY_S
            for stub in self._stubs:
                if stub.has_ended():
                    return f"the process of model {stub.model} ended, pid {stub.pid}"
        if now >= self._next_signs:
            faults = [signs.look() for signs in self._signs]
            is_in_doubt = any(signs.is_in_doubt for signs in self._signs)
            self._next_signs = time.monotonic() + (
                PROCESSES_EVERY_S if is_in_doubt else LOOK_EVERY_S
            )
            return next(filter(None, faults), None)
        return None
