"""Runs one tritonserver as a child process: start, wait until ready, stop, leave nothing behind."""

import contextlib
import errno
import http.client
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from bertron_server import die_with_parent, shared_memory
from bertron_server.command import (
    ServerSettings,
    check_extra_args,
    server_command,
    server_environment,
)
from bertron_server.errors import PortTakenError, RepositoryError, ServerError, StartError
from bertron_server.installation import find_installation
from bertron_server.server_log import ServerLog, decisive_lines, taken_socket

READY_POLL_S = 0.05
EXIT_POLL_S = 0.02
HTTP_TIMEOUT_S = 2.0
# Triton server looks at its exit timeout once a second, and then ends its stubs.
EXIT_MARGIN_S = 5.0
# A port that was free when it was picked can be gone when it is bound.
START_ATTEMPTS = 3


class TritonServer:
    """A tritonserver with the models of one repository, as a context manager.

    Entering returns when every model of the repository answers ready; leaving drains and stops.
    If this process dies, the kernel sends the server SIGTERM. That is tied to the thread which
    called `start`: start it from one that lives as long as the server.

    Args:
        model_repository: The directory of models; all of them are loaded.
        address: Where the endpoints listen.
        http_port: 0 picks a free one, as for the other two.
        grpc_port: See ``http_port``.
        metrics_port: See ``http_port``.
        ready_timeout_s: How long loading and warm-up may take.
        exit_timeout_s: How long a stop waits for accepted requests, whole seconds.
        log_path: A file for the server's log; it is appended to.
        log_stream: A further place for the log, such as stderr.
        extra_args: Further tritonserver flags.
    """

    def __init__(
        self,
        model_repository: Path | str = Path("model_repository"),
        *,
        address: str = "127.0.0.1",
        http_port: int = 0,
        grpc_port: int = 0,
        metrics_port: int = 0,
        ready_timeout_s: float = 60,
        exit_timeout_s: int = 30,
        log_path: Path | None = None,
        log_stream: TextIO | None = None,
        extra_args: Sequence[str] = (),
    ) -> None:
        self.model_repository = Path(model_repository)
        self.address = address
        self.http_port = http_port
        self.grpc_port = grpc_port
        self.metrics_port = metrics_port
        self.ready_timeout_s = ready_timeout_s
        self.exit_timeout_s = exit_timeout_s
        self.extra_args = tuple(extra_args)
        self._wanted_ports = {"http": http_port, "grpc": grpc_port, "metrics": metrics_port}
        self._log_path = log_path
        self._log_stream = log_stream
        self._log_file: TextIO | None = None
        self._log: ServerLog | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._shm_prefix = ""

    @property
    def http_url(self) -> str:
        """Where the HTTP endpoint answers, such as ``http://127.0.0.1:8000``."""
        return f"http://{reachable_host(self.address)}:{self.http_port}"

    @property
    def grpc_url(self) -> str:
        """Where the gRPC endpoint answers, such as ``grpc://127.0.0.1:8001``."""
        return f"grpc://{reachable_host(self.address)}:{self.grpc_port}"

    @property
    def metrics_url(self) -> str:
        """Where Prometheus finds the metrics, path included."""
        return f"http://{reachable_host(self.address)}:{self.metrics_port}/metrics"

    @property
    def pid(self) -> int:
        """The process id of tritonserver itself; it leads a process group of its own."""
        return self._running().pid

    @property
    def returncode(self) -> int | None:
        """How the server ended; None while it runs, and before a start."""
        return self._process.poll() if self._process else None

    def is_alive(self) -> bool:
        """Whether the process runs; says nothing about its models."""
        return self._process is not None and self._process.poll() is None

    def log_tail(self, lines: int = 50) -> str:
        """Return the last lines that the server wrote."""
        return self._log.tail(lines) if self._log else ""

    def start(self) -> None:
        """Start the process and return at once.

        Raises:
            ServerError: It cannot be started: no tritonserver, no models, a port that is taken.
        """
        if self._process is not None:
            raise ServerError(f"the server is already started, process {self._process.pid}")
        model_names(self.model_repository)
        check_extra_args(self.extra_args)
        installation = find_installation()
        shared_memory.remove_stale_regions()
        self.http_port, self.grpc_port, self.metrics_port = self._pick_ports()
        self._shm_prefix = shared_memory.new_prefix()
        settings = ServerSettings(
            model_repository=self.model_repository,
            address=self.address,
            http_port=self.http_port,
            grpc_port=self.grpc_port,
            metrics_port=self.metrics_port,
            exit_timeout_s=self.exit_timeout_s,
            admin_key=secrets.token_urlsafe(24),
            shm_prefix=self._shm_prefix,
            extra_args=self.extra_args,
        )
        dies_with_us = [sys.executable, "-I", "-S", die_with_parent.__file__, str(os.getpid())]
        self._process = subprocess.Popen(
            [*dies_with_us, *server_command(installation, settings)],
            env={**os.environ, **server_environment(installation)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C in the terminal is ours to pass on
        )
        if self._log_path is not None:
            self._log_file = self._log_path.open("a", encoding="utf-8")
        sinks = [sink for sink in (self._log_file, self._log_stream) if sink is not None]
        assert self._process.stdout is not None  # noqa: S101 - PIPE above
        self._log = ServerLog(self._process.stdout, sinks)

    def wait_until_ready(self) -> None:
        """Return when the server and each of its models answer ready.

        Raises:
            PortTakenError: Another process took one of its ports in the meantime.
            StartError: It ended, with the line of its log that says why, or it took too long.
        """
        deadline = time.monotonic() + self.ready_timeout_s
        waiting_for = ["", *(f"models/{name}/" for name in model_names(self.model_repository))]
        while waiting_for:
            if not self.is_alive():
                raise self._start_failure()
            path = waiting_for[0] or "health/"
            if self._answers_ok(f"/v2/{path}ready"):
                del waiting_for[0]
                continue
            if time.monotonic() > deadline:
                what = f"model {path.split('/')[1]}" if waiting_for[0] else "the server"
                raise StartError(
                    f"{what} was not ready after {self.ready_timeout_s:g} s; its log ends:\n"
                    + self.log_tail(10)
                )
            time.sleep(READY_POLL_S)

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait until the process has ended; return its exit code, or None after ``timeout_s``."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (code := self.returncode) is None:
            if deadline is not None and time.monotonic() > deadline:
                return None
            time.sleep(EXIT_POLL_S)
        return code

    def terminate(self) -> None:
        """Ask the server to finish what it accepted and to exit; return at once."""
        if self.is_alive():
            self._running().send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the server and its stubs at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def stop(self) -> int | None:
        """Drain and stop; return the exit code, or None where nothing was started.

        Waits at most ``exit_timeout_s`` and a margin, then kills the process group. Afterwards no
        process and no shared memory of this server is left.
        """
        if self._process is None:
            return None
        try:
            self.terminate()
            self.wait(self.exit_timeout_s + EXIT_MARGIN_S)
        finally:
            self.kill()  # stubs too, which may outlive the server by a moment
            code = self._process.wait()
            if self._log is not None:
                self._log.join(EXIT_MARGIN_S)
            if self._log_file is not None:
                self._log_file.close()
            shared_memory.remove_regions(self._shm_prefix)
            self._process = None
            self._log_file = None
        return code

    def __enter__(self) -> Self:
        for attempt in range(START_ATTEMPTS):
            try:
                self.start()
                self.wait_until_ready()
            except PortTakenError:
                self.stop()
                if attempt == START_ATTEMPTS - 1 or all(self._wanted_ports.values()):
                    raise
            except BaseException:
                self.stop()
                raise
            else:
                break
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ServerError("the server is not started")
        return self._process

    def _pick_ports(self) -> list[int]:
        """Return three ports that can be bound now, those asked for and free ones for 0."""
        ports = []
        with contextlib.ExitStack() as held:  # all at once, so that all three differ
            for endpoint, port in self._wanted_ports.items():
                ports.append(
                    held.enter_context(_bound(self.address, port, endpoint)).getsockname()[1]
                )
        return ports

    def _answers_ok(self, path: str) -> bool:
        """One GET on a connection of its own: an idle one would hold up a stop."""
        host = reachable_host(self.address).strip("[]")
        connection = http.client.HTTPConnection(host, self.http_port, timeout=HTTP_TIMEOUT_S)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _start_failure(self) -> StartError | PortTakenError:
        if self._log is not None:
            self._log.join(EXIT_MARGIN_S)
        log = self._log.tail() if self._log else ""
        if taken := taken_socket(log):
            return PortTakenError(f"{taken} is taken by another process")
        lines = "\n".join(f"  {line}" for line in decisive_lines(log))
        return StartError(f"tritonserver ended with exit code {self.returncode}:\n{lines}")


def model_names(model_repository: Path) -> list[str]:
    """Return the names of the models in a repository, sorted.

    Raises:
        RepositoryError: There is no such directory, or no model in it.
    """
    if not model_repository.is_dir():
        raise RepositoryError(
            f"there is no model repository at {model_repository}; "
            "`bertron export` writes one, --model-repository names another"
        )
    names = sorted(config.parent.name for config in model_repository.glob("*/config.pbtxt"))
    if not names:
        raise RepositoryError(f"no model in {model_repository}: not one */config.pbtxt")
    return names


def reachable_host(address: str) -> str:
    """Return the host of a URL that reaches a server listening on ``address`` from this machine."""
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - read, not bound
    host = everywhere.get(address, address)
    return f"[{host}]" if ":" in host else host


def _bound(address: str, port: int, endpoint: str) -> socket.socket:
    """A socket that holds the port for a moment.

    Raises:
        PortTakenError: Another process listens there.
        ServerError: The address is not this machine's, or the port needs privileges.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            address, port, type=socket.SOCK_STREAM
        )[0]
        probe = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ServerError(f"cannot listen on {address}: {error.strerror}") from error
    try:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server: past TIME_WAIT
        probe.bind(place)
    except OSError as error:
        probe.close()
        if error.errno == errno.EADDRINUSE:
            raise PortTakenError(
                f"{endpoint} port {port} on {address} is taken by another process; "
                f"choose another with --{endpoint}-port"
            ) from error
        raise ServerError(f"cannot listen on {address}:{port}: {error.strerror}") from error
    return probe
