"""Builds the command line and the environment that tritonserver runs with; starts nothing."""

import os
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bertron_server.errors import TritonServerError
from bertron_server.installation import Installation, Version

# Closed to everyone: what changes the server, or reads and writes memory beyond a request.
# Inference, metadata, health, model-config and statistics stay open.
CLOSED_APIS = ("shared-memory", "model-repository", "logging", "trace")
ADMIN_HEADER = "bertron-admin-key"

# First region of each Python stub. The largest batch, 64 texts x 512 tokens x 3 int32 inputs, is
# 0.4 MB; a region grows by itself, and Docker gives /dev/shm 64 MB in all.
SHM_REGION_BYTES = 4 * 1024 * 1024
# A stub that imports torch and warms up on a busy machine; Triton server's own 30 s is short.
STUB_TIMEOUT_S = 120
# 64 texts x 100,000 characters x 4 bytes is 25.6 MB; beyond it no request can be a good one.
HTTP_INPUT_BYTES = 32 * 1024 * 1024

# Flags that an older server exits on, with the version that brought them.
SINCE_VERSION: Mapping[str, Version] = {
    f"--http-max-input-size={HTTP_INPUT_BYTES}": (2, 59),  # 25.06
}

# What a caller may not pass on: the URLs and the readiness check would no longer be true.
OWN_FLAGS = (
    "--model-repository",
    "--model-store",
    "--model-control-mode",
    "--http-address",
    "--http-port",
    "--grpc-address",
    "--grpc-port",
    "--metrics-address",
    "--metrics-port",
    "--exit-timeout-secs",
)


@dataclass(frozen=True)
class ServerSettings:
    """Everything that varies from one start to the next.

    Attributes:
        model_repository: The directory of models.
        address: Where all three endpoints listen.
        http_port: A real port, never 0.
        grpc_port: As ``http_port``.
        metrics_port: As ``http_port``.
        exit_timeout_s: How long a stop waits for accepted requests.
        admin_key: What the closed APIs ask for.
        shm_prefix: How the names of the Python stubs' shared memory begin.
        shared_memory: Whether callers may exchange tensors through shared memory: they can then
            make the server read and write any shared-memory object of this machine by its name.
        extra_args: Further flags, as they are.
    """

    model_repository: Path
    address: str
    http_port: int
    grpc_port: int
    metrics_port: int
    exit_timeout_s: int
    admin_key: str
    shm_prefix: str
    shared_memory: bool = False
    extra_args: tuple[str, ...] = ()


def server_command(installation: Installation, settings: ServerSettings) -> list[str]:
    """Return tritonserver's command line, with only the flags that its version knows.

    Raises:
        TritonServerError: ``extra_args`` sets a flag that has a setting of its own.
    """
    check_extra_args(settings.extra_args)
    closed = ",".join(
        api for api in CLOSED_APIS if not (api == "shared-memory" and settings.shared_memory)
    )
    command = [
        str(installation.binary),
        f"--model-repository={settings.model_repository.absolute()}",
        "--model-control-mode=none",
        "--disable-auto-complete-config",
        "--exit-on-error=true",
        "--strict-readiness=true",
        f"--exit-timeout-secs={settings.exit_timeout_s}",
        "--log-format=ISO8601",
        "--log-verbose=0",
        f"--http-address={settings.address}",
        f"--http-port={settings.http_port}",
        "--reuse-http-port=false",
        f"--http-restricted-api={closed}:{ADMIN_HEADER}={settings.admin_key}",
        f"--grpc-address={settings.address}",
        f"--grpc-port={settings.grpc_port}",
        "--reuse-grpc-port=false",
        f"--grpc-restricted-protocol={closed}:{ADMIN_HEADER}={settings.admin_key}",
        f"--metrics-address={settings.address}",
        f"--metrics-port={settings.metrics_port}",
        f"--backend-config=python,shm-default-byte-size={SHM_REGION_BYTES}",
        f"--backend-config=python,shm-region-prefix-name={settings.shm_prefix}",
        f"--backend-config=python,stub-timeout-seconds={STUB_TIMEOUT_S}",
    ]
    if installation.backend_directory is not None:
        command.append(f"--backend-directory={installation.backend_directory}")
    if installation.version is not None:
        known = (flag for flag, since in SINCE_VERSION.items() if installation.version >= since)
        command.extend(known)
    command.extend(settings.extra_args)
    return command


def check_extra_args(extra_args: Iterable[str]) -> None:
    """Refuse further flags that Bertron itself sets from its own settings.

    Raises:
        TritonServerError: One of them is in ``extra_args``.
    """
    for argument in extra_args:
        flag = argument.partition("=")[0]
        if flag in OWN_FLAGS:
            raise TritonServerError(
                f"{flag} cannot be passed through; `bertron serve` sets it itself"
            )


def server_environment(
    installation: Installation, http_url: str, inherited: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Return the variables that differ from ``inherited``, whole values.

    The Python stub ignores PYTHONPATH and finds its packages through the first python3 on the
    PATH, so this environment's own comes first. From ``http_url``, where the server will answer,
    the tokenizer learns how long its own queue is.
    """
    environment = {
        "PATH": _in_front([Path(sys.executable).parent], inherited.get("PATH", "")),
        "BERTRON_HTTP_URL": http_url,
    }
    if installation.library_directories:
        environment["LD_LIBRARY_PATH"] = _in_front(
            installation.library_directories, inherited.get("LD_LIBRARY_PATH", "")
        )
    return environment


def _in_front(directories: Iterable[Path], rest: str) -> str:
    return os.pathsep.join([*map(str, directories), *filter(None, [rest])])


def shell_line(command: list[str], environment: Mapping[str, str]) -> str:
    """Return one line that a shell runs as it stands."""
    assignments = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
    return " ".join([*assignments, shlex.join(command)])
