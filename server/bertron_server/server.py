"""Runs one tritonserver as a child process: start, wait until ready, stop, leave nothing behind."""

import contextlib
import dataclasses
import errno
import http.client
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from bertron_server import descriptors, die_with_parent, shared_memory
from bertron_server.command import ServerSettings, server_command, server_environment
from bertron_server.errors import PortTakenError, RepositoryError, StartError, TritonServerError
from bertron_server.installation import Version, find_installation
from bertron_server.plain_paths import PLAIN, PlainPaths
from bertron_server.server_log import ServerLog, decisive_lines, taken_socket

READY_POLL_S = 0.05
EXIT_POLL_S = 0.02
GROUP_EXIT_S = 2.0  # processes that were killed end in milliseconds, on busy cores later
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
        address: Where the endpoints listen, IPv4.
        http_port: 0 picks a free one, as for the other two.
        grpc_port: See ``http_port``.
        metrics_port: See ``http_port``.
        ready_timeout_s: How long loading and warm-up may take.
        exit_timeout_s: How long a stop waits for accepted requests, whole seconds.
        shared_memory: Whether callers may exchange tensors through shared memory; see
            ``ServerSettings``.
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
        shared_memory: bool = False,
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
        self._shared_memory = shared_memory
        self.server_version: Version | None = None
        self._wanted_ports = {"http": http_port, "grpc": grpc_port, "metrics": metrics_port}
        self._log_path = log_path
        self._log_stream = log_stream
        self._log_file: TextIO | None = None
        self._log: ServerLog | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._shm_prefix = ""
        self._paths = PlainPaths()
        self._is_stopping = False

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
        if self._process is None:
            return None
        try:  # without reaping it: until `stop` its id, and so its group's, belongs to nobody else
            ended = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # gevent's subprocess reaps by itself
            return self._process.poll()
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def is_alive(self) -> bool:
        """Whether the process runs; says nothing about its models."""
        return self._process is not None and self.returncode is None

    def log_tail(self, lines: int = 50) -> str:
        """Return the last lines that the server wrote."""
        return self._log.tail(lines) if self._log else ""

    def prepare(self, *, check_ports: bool = True) -> tuple[list[str], dict[str, str]]:
        """Pick the ports, and return the command line and the variables that it needs besides ours.

        Links that the command line needs (:mod:`plain_paths`) stay until `stop`.

        Args:
            check_ports: Whether a port that is asked for must be free now.

        Raises:
            TritonServerError: No tritonserver, no models, or a port that is taken.
        """
        model_names(self.model_repository)
        installation = find_installation()
        self.server_version = installation.version
        self.http_port, self.grpc_port, self.metrics_port = self._pick_ports(check_ports)
        self._shm_prefix = shared_memory.new_prefix()
        settings = ServerSettings(
            model_repository=self._paths.of(self.model_repository),
            address=ipv4_of(self.address),
            http_port=self.http_port,
            grpc_port=self.grpc_port,
            metrics_port=self.metrics_port,
            exit_timeout_s=self.exit_timeout_s,
            admin_key=secrets.token_urlsafe(24),
            shm_prefix=self._shm_prefix,
            shared_memory=self._shared_memory,
            extra_args=self.extra_args,
        )
        if installation.backend_directory is not None:
            installation = dataclasses.replace(
                installation, backend_directory=self._paths.of(installation.backend_directory)
            )
        environment = server_environment(installation, self.http_url)
        return server_command(installation, settings), environment

    def start(self) -> None:
        """Start the process and return at once.

        Raises:
            TritonServerError: No tritonserver, no models, or a port that is taken.
        """
        if self._process is not None:
            raise TritonServerError(f"the server is already started, process {self._process.pid}")
        command, environment = self.prepare()
        shared_memory.remove_stale_regions()
        if self._log_path is not None:
            self._log_file = self._log_path.open("a", encoding="utf-8")
        self._process = subprocess.Popen(
            die_with_parent.tied(command),
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C in the terminal is ours to pass on
        )
        descriptors.allow_many(self._process.pid)
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
                raise self.failure()
            if self._is_stopping:
                raise StartError("stopped before it was ready")
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
            self._is_stopping = True
            with contextlib.suppress(ProcessLookupError):  # a signal handler calls this too, at any
                os.kill(self.pid, signal.SIGTERM)  # moment of a wait for the process

    def kill(self) -> None:
        """End the server and its stubs at once."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def stop(self, drain_s: float | None = None) -> int | None:
        """Drain and stop; return the exit code, or None where nothing was started.

        Waits at most ``drain_s``, then kills the process group. Afterwards no process and no shared
        memory of this server is left. Close clients first: Triton server waits out
        ``exit_timeout_s`` for a connection that is merely idle.

        Args:
            drain_s: Default: ``exit_timeout_s`` and a margin.
        """
        if self._process is None:
            self._paths.remove()
            return None
        try:
            self.terminate()
            self.wait(self.exit_timeout_s + EXIT_MARGIN_S if drain_s is None else drain_s)
        finally:
            self.kill()  # stubs too, which may outlive the server by a moment
            code = self._process.wait()
            self._wait_for_group()
            if self._log is not None:
                self._log.join(EXIT_MARGIN_S)
            if self._log_file is not None:
                self._log_file.close()
            shared_memory.remove_regions(self._shm_prefix)
            self._paths.remove()
            self._process = None
            self._log_file = None
            self._is_stopping = False
        return code

    def _wait_for_group(self) -> None:
        """Return when no process of the server is left, or after GROUP_EXIT_S.

        Where nobody reaps orphans, as in some containers, killed stubs stay as zombies for good.
        """
        deadline = time.monotonic() + GROUP_EXIT_S
        while time.monotonic() < deadline:
            try:
                os.killpg(self.pid, 0)
            except ProcessLookupError:
                return
            time.sleep(EXIT_POLL_S)

    def keep_ports(self) -> None:
        """Let the next start listen where this one did, also where a free port was asked for."""
        self._wanted_ports = {
            "http": self.http_port,
            "grpc": self.grpc_port,
            "metrics": self.metrics_port,
        }

    def failure(self) -> StartError | PortTakenError:
        """Return an error that says why the process ended, from its log."""
        self.kill()  # stubs outlive it by seconds and hold its output open
        if self._log is not None:
            self._log.join(EXIT_MARGIN_S)
        log = self._log.tail() if self._log else ""
        if taken := taken_socket(log):
            return PortTakenError(f"{taken} is taken by another process")
        lines = "\n".join(f"  {line}" for line in decisive_lines(log))
        return StartError(f"tritonserver ended, {_ending(self.returncode)}:\n{lines}")

    def get(self, path: str) -> bytes:
        """Return the body of one GET from the HTTP endpoint.

        Raises:
            OSError: No connection, or no answer in time.
            http.client.HTTPException: A status other than 200, or no HTTP.
        """
        status, body = self.ask(path)
        if status != http.client.OK:
            raise http.client.HTTPException(f"{path} answered {status}")
        return body

    def ask(
        self, path: str, body: bytes | None = None, timeout_s: float = HTTP_TIMEOUT_S
    ) -> tuple[int, bytes]:
        """Return status and body of the HTTP endpoint's answer to a GET, or to a POST of ``body``.

        On a connection of its own, closed afterwards: an idle one would hold up a stop. Not with
        urllib, which would ask the proxy of this environment.

        Raises:
            OSError: No connection, or no answer in time.
            http.client.HTTPException: No HTTP.
        """
        host = reachable_host(self.address)
        connection = http.client.HTTPConnection(host, self.http_port, timeout=timeout_s)
        with contextlib.closing(connection):
            connection.request("GET" if body is None else "POST", path, body)
            answer = connection.getresponse()
            return answer.status, answer.read()

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
            raise TritonServerError("the server is not started")
        return self._process

    def _pick_ports(self, check: bool) -> list[int]:
        """Return three ports, those asked for and free ones for 0."""
        ports = []
        with contextlib.ExitStack() as held:  # all at once, so that all three differ
            for endpoint, port in self._wanted_ports.items():
                if check or port == 0:
                    probe = held.enter_context(_bound(ipv4_of(self.address), port, endpoint))
                    port = probe.getsockname()[1]
                ports.append(port)
        return ports

    def _answers_ok(self, path: str) -> bool:
        try:
            self.get(path)
        except (OSError, http.client.HTTPException):
            return False
        return True


def model_names(model_repository: Path) -> list[str]:
    """Return the names of the models in a repository, sorted.

    Raises:
        RepositoryError: There is no such directory, no model in it, or one whose name cannot be
            served.
    """
    if not model_repository.is_dir():
        raise RepositoryError(
            f"there is no model repository at {model_repository}; "
            "`bertron export` writes one, --model-repository names another"
        )
    names = sorted(config.parent.name for config in model_repository.glob("*/config.pbtxt"))
    if not names:
        raise RepositoryError(f"no model in {model_repository}: not one */config.pbtxt")
    for name in names:
        if not PLAIN.fullmatch(name):
            raise RepositoryError(
                f"the model {name!r} in {model_repository} cannot be served: a name is of ASCII "
                "letters, digits, '.', '_' and '-'"
            )
    return names


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def reachable_host(address: str) -> str:
    """Return the host of a URL that reaches a server listening on ``address`` from this machine."""
    return "127.0.0.1" if address == "0.0.0.0" else address  # noqa: S104 - read, not bound


def ipv4_of(address: str) -> str:
    """Return the numeric address; Triton server takes a name for 255.255.255.255.

    Raises:
        TritonServerError: It is no IPv4 address and no name of one.
    """
    try:
        place = socket.getaddrinfo(address, None, family=socket.AF_INET, type=socket.SOCK_STREAM)
    except OSError as error:
        raise TritonServerError(
            f"cannot listen on {address}: it is neither an IPv4 address nor a name of one"
        ) from error
    return str(place[0][4][0])


def _bound(address: str, port: int, endpoint: str) -> socket.socket:
    """A socket that holds the port for a moment.

    Raises:
        PortTakenError: Another process listens there.
        TritonServerError: The address is not this machine's, or the port needs privileges.
    """
    probe = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server: past TIME_WAIT
        probe.bind((address, port))
    except OSError as error:
        probe.close()
        if error.errno == errno.EADDRINUSE:
            raise PortTakenError(
                f"{endpoint} port {port} on {address} is taken by another process; "
                f"choose another with --{endpoint}-port"
            ) from error
        raise TritonServerError(f"cannot listen on {address}:{port}: {error.strerror}") from error
    return probe
