"""Makes one run: Locust in processes of its own, and an observer of the server beside them."""

import contextlib
import dataclasses
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from bertron_loadtest.answers import MIN_COSINE
from bertron_loadtest.callers import CALLERS
from bertron_loadtest.observation import Observer
from bertron_loadtest.phases import plan_phases
from bertron_loadtest.ports import free_port
from bertron_loadtest.run_record import RUN_FILE, Run
from bertron_loadtest.workload import (
    BERT_AS_SERVICE_TOKENS,
    SAMPLE_TEXTS,
    make_workload,
)

LOCUSTFILE = Path(__file__).with_name("shaped.py")
LOOPS = ("closed", "open")
# Locust's start, known vectors, its last reports; beyond it, it is killed.
OVERTIME_S = 45.0
_WORKERS_OVERTIME_S = 30.0  # for workers to connect, and to report for the last time
_SHOWN_OF_LOG = 2000  # characters, where Locust left no run
_MOST_USERS_A_RATE = 64  # processes of arrivals that a rate is split into


class LoadError(RuntimeError):
    """A run could not be made; the message says why."""


@dataclass(frozen=True)
class ServerPlace:
    """Where a server is, and what can be seen of it.

    Attributes:
        urls: By scheme: ``grpc``, ``http``.
        metrics_url: Of its Prometheus page.
        pid: Of tritonserver, where it runs on this machine.
        watched: Further processes whose use is recorded, by name.
    """

    urls: Mapping[str, str]
    metrics_url: str | None = None
    pid: int | None = None
    watched: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadSettings:
    """What is asked of a server, how often and for how long.

    Attributes:
        callers: Names of ``CALLERS``; users are divided among them.
        model: Name of the served model.
        workload: Name, see ``workload.make_workload``; so the next four.
        texts: File of a sample; None: ours.
        texts_a_call: Sizes of calls; empty: the workload's own.
        tokens: Of each text in ``bert-as-service``.
        seed: Of the workload.
        loop: ``closed``: a user asks again when it was answered. ``open``: calls arrive at random.
        users: At most, but for a spike; of a closed loop.
        rate: Calls a second of an open loop, instead of users.
        shape: See ``phases.plan_phases``; so the next two.
        seconds: Without the warm-up.
        warm_up_s: Before them.
        timeout_s: Of each call.
        known_vectors: File of vectors that answers must agree with; None: the server's own.
        min_cosine: With those.
        workers: Processes that make the load; 0: one that is its own master.
    """

    callers: Sequence[str] = ("grpc",)
    model: str = "text_embedding"
    workload: str = "short"
    texts: Path | None = None
    texts_a_call: Sequence[int] = ()
    tokens: int = BERT_AS_SERVICE_TOKENS
    seed: int = 0
    loop: str = "closed"
    users: int = 32
    rate: float = 0.0
    shape: str = "steady"
    seconds: float = 60.0
    warm_up_s: float = 3.0
    timeout_s: float = 30.0
    known_vectors: Path | None = None
    min_cosine: float = MIN_COSINE
    workers: int = 0

    def __post_init__(self) -> None:
        """Refuse what Locust would only fail at.

        Raises:
            OSError: A file cannot be read.
            ValueError: A name or number is none that is known.
        """
        unknown = sorted(set(self.callers) - CALLERS.keys())
        if unknown or not self.callers:
            raise ValueError(f"callers are {self.callers}, some of {', '.join(CALLERS)} are wanted")
        if self.loop not in LOOPS:
            raise ValueError(f"loop is {self.loop!r}, one of {', '.join(LOOPS)} is wanted")
        if (self.loop == "open") != (self.rate > 0):
            raise ValueError(f"a rate, here {self.rate:g}, is for an open loop, and it needs one")
        if self.timeout_s <= 0 or self.workers < 0:
            raise ValueError(f"timeout_s is {self.timeout_s:g}, workers {self.workers}")
        plan_phases(self.shape, users=self.users, seconds=self.seconds, warm_up_s=self.warm_up_s)
        make_workload(
            self.workload,
            seed=self.seed,
            sample=self.texts or SAMPLE_TEXTS,
            texts_a_call=self.texts_a_call or None,
            tokens=self.tokens,
        )

    @property
    def locust_users(self) -> tuple[int, float]:
        """Locust's users, and calls a second of each in an open loop: see ``users.py``."""
        if self.loop == "closed":
            return self.users, 1.0
        users = min(_MOST_USERS_A_RATE, max(1, round(self.rate)))
        return users, self.rate / users


def run_load(settings: LoadSettings, place: ServerPlace, folder: Path) -> Run:
    """Put a server under load, and save the run in ``folder``.

    Returns:
        The run, whatever its answers were like.

    Raises:
        LoadError: Locust did not end, or left no run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RUN_FILE).unlink(missing_ok=True)  # one that fails must not pass for an older one
    seen = place.urls.get("http") or place.urls["grpc"]
    with (
        tempfile.TemporaryFile() as log,
        Observer(
            seen, settings.model, metrics_url=place.metrics_url, server_pid=place.pid
        ) as observer,
        contextlib.ExitStack() as workers,
    ):
        for name, pid in place.watched.items():
            observer.watch(name, pid)
        master: list[str] = []
        limit_s = settings.warm_up_s + settings.seconds + settings.timeout_s + OVERTIME_S
        if settings.workers:
            port = free_port()
            master = ["--master", "--master-bind-host", "127.0.0.1"]
            master += ["--master-bind-port", str(port), "--expect-workers", str(settings.workers)]
            worker = ["--worker", "--master-host", "127.0.0.1", "--master-port", str(port)]
            for number in range(settings.workers):
                command = _locust_command(settings, place.urls, worker)
                process = workers.enter_context(_locust(command, log))
                observer.watch(f"load worker {number}", process.pid)
            limit_s += _WORKERS_OVERTIME_S
        command = _locust_command(settings, place.urls, master, folder)
        with _locust(command, log) as process:
            observer.watch("load generator", process.pid)
            try:
                process.wait(limit_s)
            except subprocess.TimeoutExpired:
                raise LoadError(
                    f"Locust had not ended after {limit_s:g} s, and was killed"
                ) from None
        log.seek(0)
        said = log.read().decode("utf-8", "replace")
    try:
        run = Run.load(folder)
    except (OSError, ValueError) as error:
        shown = said[-_SHOWN_OF_LOG:]
        raise LoadError(
            f"Locust ended with {process.returncode} and no run: {error}\n{shown}"
        ) from error
    run = dataclasses.replace(run, settings=_as_document(settings), snapshots=observer.snapshots)
    run.save(folder)
    return run


def _as_document(settings: LoadSettings) -> dict[str, object]:
    document = dataclasses.asdict(settings)
    return {
        name: str(value)
        if isinstance(value, Path)
        else list(value)
        if isinstance(value, tuple)
        else value
        for name, value in document.items()
    }


def _locust_command(
    settings: LoadSettings, urls: Mapping[str, str], role: Sequence[str], folder: Path | None = None
) -> list[str]:
    users, calls_per_user_s = settings.locust_users
    options: dict[str, object] = {
        "model": settings.model,
        "workload": settings.workload,
        "tokens": settings.tokens,
        "seed": settings.seed,
        "loop": settings.loop,
        "calls-per-user-s": calls_per_user_s,
        "timeout-s": settings.timeout_s,
        "min-cosine": settings.min_cosine,
        "shape": settings.shape,
        "seconds": settings.seconds,
        "warm-up-s": settings.warm_up_s,
        "users": users,
        # Calls in flight at the end are waited for, and each has its deadline.
        "stop-timeout": math.ceil(settings.timeout_s) + 5,
        "loglevel": "WARNING",
    }
    options |= {f"{scheme}-url": url for scheme, url in urls.items()}
    if settings.texts_a_call:
        options["texts-a-call"] = ",".join(str(size) for size in settings.texts_a_call)
    for name, path in (
        ("texts", settings.texts),
        ("known-vectors", settings.known_vectors),
        ("output-folder", folder),
    ):
        if path is not None:
            options[name] = path.absolute()
    command = [sys.executable, "-m", "locust", "--locustfile", str(LOCUSTFILE), "--only-summary"]
    command += [] if "--worker" in role else ["--headless"]
    command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return [*command, *role, *(CALLERS[name].user for name in settings.callers)]


@contextlib.contextmanager
def _locust(command: Sequence[str], log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Locust as a process, which outlives neither the block nor this process."""
    from bertron_server import die_with_parent

    process = subprocess.Popen(
        die_with_parent.tied([*command]),
        stdout=subprocess.DEVNULL,  # its summary, which the report has
        stderr=log,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
