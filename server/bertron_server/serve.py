"""`bertron serve`: Triton server in the foreground, until Ctrl-C."""

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
from bertron_server.server import TritonServer, model_names

SIGNAL_POLL_S = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--model-repository", type=Path, default=Path("model_repository"), metavar="DIR"
    )
    parser.add_argument("--address", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--http-port", type=int, default=8000, metavar="PORT", help="0: a free one")
    parser.add_argument("--grpc-port", type=int, default=8001, metavar="PORT")
    parser.add_argument("--metrics-port", type=int, default=8002, metavar="PORT")
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
        sys.stdout.write(shell_line(*server.prepare(check_ports=False)) + "\n")
        return 0
    _check_repository(args.model_repository)
    if not _is_loopback(args.address):
        _say(
            f"warning: {args.address} is open to the network, without TLS and without "
            "authentication; put a proxy or a firewall in front"
        )
    return _serve(server)


def _serve(server: TritonServer) -> int:
    """Start, wait and stop. A watchdog that probes and restarts belongs around this."""
    with _Stop(server).on_signals() as stop:
        try:
            started = time.monotonic()
            _say(f"loading {', '.join(model_names(server.model_repository))}")
            server.start()
            stop.pass_on()  # a signal may have come before there was a process
            server.wait_until_ready()
            _say(_banner(server, ready_after_s=time.monotonic() - started))
            while not stop.signals and server.is_alive():
                server.wait(SIGNAL_POLL_S)
        except TritonServerError:
            if not stop.signals:
                raise
        else:
            if not stop.signals:
                raise TritonServerError(f"the server ended by itself\n{server.failure()}")
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
        if self.signals == 1:
            # Not through sys.stdout, which this signal may have interrupted in a write.
            with contextlib.suppress(OSError):
                os.write(1, b"stopping: accepted requests are finished first; once more kills\n")
        self.pass_on()

    def pass_on(self) -> None:
        """Do to the server what the signals so far ask for."""
        if self.signals > 1:
            self._server.kill()
        elif self.signals:
            self._server.terminate()


def _check_repository(model_repository: Path) -> None:
    """Refuse a repository whose models Triton server could only fail to load."""
    model_names(model_repository)
    missing = missing_exports(model_repository)
    if missing:
        raise RepositoryError(
            f"{missing[0]} is missing; write it with "
            f"`bertron export CHECKPOINT --model-repository {model_repository}`"
        )


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
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
