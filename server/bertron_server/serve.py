"""`bertron serve`: Triton server in the foreground, started again when it fails, until Ctrl-C."""

import argparse
import contextlib
import http.client
import ipaddress
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from bertron_server.banner import banner, missing_exports, served_models
from bertron_server.command import shell_line
from bertron_server.errors import RepositoryError, TritonServerError
from bertron_server.restart_limit import WINDOW_S, RestartLimit
from bertron_server.server import TritonServer, model_names
from bertron_server.watchdog import Watchdog
from bertron_server.words import say

SIGNAL_POLL_S = 0.2
# What a server that failed still gets to finish what it can: with a model's process gone, the calls
# that waited for it have their errors in 2 s.
FAILED_DRAIN_S = 3.0
MAX_PORT = 65535


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--model-repository", type=Path, default=Path("model_repository"), metavar="DIR"
    )
    parser.add_argument("--address", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument(
        "--http-port", type=_port, default=8000, metavar="PORT", help="0: a free one"
    )
    parser.add_argument("--grpc-port", type=_port, default=8001, metavar="PORT")
    parser.add_argument("--metrics-port", type=_port, default=8002, metavar="PORT")
    parser.add_argument(
        "--ready-timeout-s",
        type=float,
        default=300,  # a large model's load and warm-up from a cold disk
        metavar="S",
        help="how long loading and warm-up may take (default: %(default)s)",
    )
    parser.add_argument(
        "--exit-timeout-s",
        type=int,
        default=30,
        metavar="S",
        help="how long a stop waits for accepted requests (default: %(default)s)",
    )
    parser.add_argument(
        "--stall-timeout-s",
        type=_positive_seconds,
        # A batch of 64 texts of 512 tokens, answered all at once, takes BERT-base half a minute on
        # 2 cores in float32, and a large model three or four times that.
        default=300,
        metavar="S",
        help="start it again when a text waits that long and nobody else gets an answer either "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--max-restarts",
        type=_count,
        default=5,
        metavar="N",
        help=f"in {WINDOW_S / 60:.0f} minutes; beyond it, end with the error (default: "
        "%(default)s; 0: end at the first)",
    )
    parser.add_argument(
        "--shared-memory",
        action="store_true",
        help="let clients on this machine exchange tensors through shared memory",
    )
    parser.add_argument(
        "--print-command", action="store_true", help="print what would be run, and exit"
    )
    parser.add_argument(
        "tritonserver_args", nargs="*", metavar="-- ARG", help="further flags for tritonserver"
    )


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > MAX_PORT:
        raise argparse.ArgumentTypeError(
            f"{text} is no port; 0 to {MAX_PORT} is wanted, 0 for a free one"
        )
    return int(text)


def _positive_seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no time; more than 0 seconds are wanted")
    return seconds


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is no count; 0 or more is wanted")
    return number


def run(args: argparse.Namespace) -> int:
    """Serve until a signal; 0 after a clean stop.

    Raises:
        TritonServerError: The server could not start, or ended by itself.
    """
    server = TritonServer(
        args.model_repository,
        address=args.address,
        http_port=args.http_port,
        grpc_port=args.grpc_port,
        metrics_port=args.metrics_port,
        ready_timeout_s=args.ready_timeout_s,
        exit_timeout_s=args.exit_timeout_s,
        shared_memory=args.shared_memory,
        log_stream=sys.stderr,
        extra_args=args.tritonserver_args,
    )
    if args.print_command:
        if not say(sys.stdout, shell_line(*server.prepare(check_ports=False)) + "\n"):
            raise TritonServerError("stdout is closed, full or no longer read")
        return 0
    _check_repository(args.model_repository)
    if not _is_loopback(args.address):
        _say(
            f"warning: {args.address} is open to the network, without TLS and without "
            "authentication; put a proxy or a firewall in front"
        )
    return _serve(server, RestartLimit(args.max_restarts), args.stall_timeout_s)


def _serve(server: TritonServer, restarts: RestartLimit, stall_timeout_s: float) -> int:
    """Start, watch, start again, and stop."""
    with _Stop(server).on_signals() as stop:
        try:
            while fault := _serve_until_fault(server, stop, restarts, stall_timeout_s):
                delay_s = restarts.next_delay_s()
                if delay_s is None:
                    raise TritonServerError(_last_words(fault, restarts))
                _say(
                    f"failed: {fault}\n"
                    f"starting again, restart {restarts.used} of at most {restarts.most} in "
                    f"{WINDOW_S / 60:.0f} minutes"
                )
                server.stop(FAILED_DRAIN_S)
                server.keep_ports()
                stop.wait(delay_s)
        except TritonServerError:
            server.stop(FAILED_DRAIN_S)
            raise
        finally:
            code = server.stop()
    if code == -signal.SIGKILL:  # by the second signal, or because it did not end in time
        _say("killed; requests that were running are lost")
        return 1
    if code == 1:  # Triton server's answer to an expired exit timeout
        _say(f"stopped after {server.exit_timeout_s} s with connections still open")
    else:
        _say("stopped")
    return 0


def _serve_until_fault(
    server: TritonServer, stop: "_Stop", restarts: RestartLimit, stall_timeout_s: float
) -> str | None:
    """Start the server and watch it; return why it must be started again, None after a signal.

    Raises:
        TritonServerError: It could not be started, the first time: no restart would mend that.
    """
    started = time.monotonic()
    if stop.signals:
        return None
    try:
        _say(f"loading {', '.join(model_names(server.model_repository))}")
        server.start()
        stop.pass_on()  # a signal may have come before there was a process
        server.wait_until_ready()
    except TritonServerError as error:
        if stop.signals:
            return None
        if not restarts.used:
            raise
        return str(error)
    ready_after_s = time.monotonic() - started
    ensembles = [model.ensemble for model in served_models(server.model_repository)]
    # Before it is said to be ready: one of its processes that ended unseen would stay unnoticed.
    watchdog = Watchdog(server, ensembles, stall_timeout_s)
    _say(_banner(server, ready_after_s=ready_after_s))
    fault = None
    while not stop.signals and fault is None:
        server.wait(SIGNAL_POLL_S)
        fault = watchdog.look()
    return None if stop.signals else fault


def _last_words(fault: str, restarts: RestartLimit) -> str:
    if not restarts.most:
        return fault
    return f"{fault}\n{restarts.most} restarts in {WINDOW_S / 60:.0f} minutes have not helped"


class _Stop:
    """The first signal drains the server, the second kills it."""

    def __init__(self, server: TritonServer) -> None:
        self.signals = 0
        self._server = server

    @contextlib.contextmanager
    def on_signals(self) -> Iterator["_Stop"]:
        """Handle SIGINT and SIGTERM inside the block."""
        before = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self.signals += 1
        # Where stdout was closed from the start, 1 is another file's by now.
        if self.signals == 1 and sys.stdout is not None:
            # Not through sys.stdout, which this signal may have interrupted in a write.
            with contextlib.suppress(OSError):
                os.write(1, b"stopping: accepted requests are finished first; once more kills\n")
        self.pass_on()

    def wait(self, timeout_s: float) -> None:
        """Return after ``timeout_s``, or soon after a signal."""
        deadline = time.monotonic() + timeout_s
        while not self.signals and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, SIGNAL_POLL_S))

    def pass_on(self) -> None:
        """Do to the server what the signals so far ask for."""
        if self.signals > 1:
            self._server.kill()
        elif self.signals:
            self._server.terminate()


def _check_repository(model_repository: Path) -> None:
    """Refuse a repository whose models Triton server could only fail to load."""
    model_names(model_repository)
    for path in sorted(model_repository.iterdir()):
        if path.is_dir() and not _has_config(path):
            raise RepositoryError(
                f"{path} is a directory without config.pbtxt, beside which Triton server loads no "
                "model: remove it, or keep the models in a directory without it"
            )
    missing = missing_exports(model_repository)
    if missing:
        raise RepositoryError(
            f"{missing[0]} is missing; write it with "
            f"`bertron export CHECKPOINT --model-repository {model_repository}`"
        )


def _has_config(model: Path) -> bool:
    try:
        return (model / "config.pbtxt").is_file()
    except PermissionError:  # lost+found, say, which Triton server cannot read either
        return False


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _banner(server: TritonServer, *, ready_after_s: float) -> str:
    models = served_models(server.model_repository)
    devices = {model.encoder: _device(server, model.encoder) for model in models}
    return banner(
        model_repository=server.model_repository,
        devices={name: device for name, device in devices.items() if device},
        server_version=server.server_version,
        ready_after_s=ready_after_s,
        urls={"HTTP": server.http_url, "gRPC": server.grpc_url, "metrics": server.metrics_url},
    )


def _device(server: TritonServer, model: str) -> str:
    """Where the server placed a model: "CPU" or "GPU"; empty where it does not say."""
    try:
        config = json.loads(server.get(f"/v2/models/{model}/config"))
        return str(config["instance_group"][0]["kind"]).removeprefix("KIND_")
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
        return ""


def _say(line: str) -> None:
    say(sys.stdout, f"{line}\n")
