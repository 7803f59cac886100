"""What can be seen of a server under load, once a second: its statistics, metrics and processes."""

import contextlib
import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import psutil

from bertron_loadtest.run_record import ProcessUse, Snapshot, StepCounters

TIMEOUT_S = 2.0  # of each question
LOAD_GENERATOR, OTHER = "load generator", "other"
COUNTERS = (
    *("bertron_tokens_total", "bertron_padded_tokens_total", "bertron_texts_total"),
    *("bertron_batch_tokens_bucket", "bertron_batch_tokens_count", "bertron_batch_tokens_sum"),
)
_DEFAULT_MODEL = "text_embedding"  # whose steps have no prefix
_COMPUTE = ("compute_input", "compute_infer", "compute_output")
_METRIC = re.compile(r"^(\w+)\{(.*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


class Observer:
    """Takes snapshots from a thread of its own: at its beginning, every period and at its end.

    A part of a snapshot is empty where nobody answers, or who answers is no Triton server; nothing
    is raised. The counters of the metrics page are up to a second behind. A snapshot takes about 10
    ms of one core where the machine runs 100 processes, most of them to find who is whose child.

    Args:
        url: Of the server: http, https, grpc or grpcs.
        model: Name of the ensemble.
        metrics_url: Of the metrics page, path included.
        server_pid: Of tritonserver, or of the process that started it, on this machine.
        generator_pid: Of the load generator, on this machine.
        period_s: From snapshot to snapshot; longer where the server is slower to answer.

    Attributes:
        snapshots: So far, in order of time.

    Raises:
        ValueError: A url is of another scheme, or names no host.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        metrics_url: str | None = None,
        server_pid: int | None = None,
        generator_pid: int | None = None,
        period_s: float = 1.0,
    ) -> None:
        _check_url(url, "http", "https", "grpc", "grpcs")
        if metrics_url is not None:
            _check_url(metrics_url, "http", "https")
        self.snapshots: list[Snapshot] = []
        self._url = url
        self._metrics_url = metrics_url
        self._roles = _roles(model)
        self._server_pid = server_pid
        self._watched: dict[str, int] = {}
        self._period_s = period_s
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._keep_looking, name="observer", daemon=True)
        if generator_pid is not None:
            self.watch(LOAD_GENERATOR, generator_pid)

    def watch(self, name: str, pid: int) -> None:
        """See a further process, and its children, as ``name`` from now on."""
        self._watched = {**self._watched, name: pid}  # the thread may be reading the other one

    def __enter__(self) -> Self:
        self.snapshots.append(self.look())
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leaving.set()
        self._thread.join()
        self.snapshots.append(self.look())

    def look(self) -> Snapshot:
        """Return what is to be seen now."""
        return Snapshot(
            time_s=time.time(),
            processes=self._processes(),
            steps=_seen(self._steps),
            metrics=_seen(self._metrics),
        )

    def _keep_looking(self) -> None:
        due_s = time.monotonic() + self._period_s
        while not self._leaving.wait(due_s - time.monotonic()):
            self.snapshots.append(self.look())
            due_s = max(due_s + self._period_s, time.monotonic())

    def _steps(self) -> dict[str, StepCounters]:
        statistics = _statistics(self._url)
        return {
            self._roles[entry["name"]]: _step_counters(entry, self._roles[entry["name"]])
            for entry in statistics["model_stats"]
            if entry["name"] in self._roles
        }

    def _metrics(self) -> dict[str, float]:
        """Those of all instances of the encoder together."""
        found: dict[str, float] = {}
        page = _get(self._metrics_url).decode() if self._metrics_url else ""
        for name, text, value in _METRIC.findall(page):
            labels = dict(_LABEL.findall(text))
            if name in COUNTERS and self._roles.get(labels["model"]) == "bert":
                key = f'{name}{{le="{labels["le"]}"}}' if "le" in labels else name
                found[key] = found.get(key, 0.0) + float(value)
        return found

    def _processes(self) -> dict[str, ProcessUse]:
        """Memory is what is resident, what it shares with others included."""
        found: dict[str, ProcessUse] = {}
        trees: list[tuple[str | None, int | None]] = [(None, self._server_pid)]
        for name, pid in [*trees, *self._watched.items()]:
            for process in _tree(pid):
                with contextlib.suppress(psutil.Error):  # it has just ended
                    key = name or self._role_of(process)
                    times, memory = process.cpu_times(), process.memory_info()
                    known = found.get(key, ProcessUse(0.0, 0))
                    found[key] = ProcessUse(
                        known.cpu_s + times.user + times.system, known.memory_bytes + memory.rss
                    )
        return found

    def _role_of(self, process: psutil.Process) -> str:
        """What a process of the server's tree is."""
        if process.name() == "tritonserver":
            return "tritonserver"
        # A stub of the Python backend is called with its model's file, such as .../bert/1/model.py.
        for word in process.cmdline():
            path = Path(word)
            if path.name == "model.py" and len(path.parts) > 2:
                return self._roles.get(path.parts[-3], OTHER)
        return OTHER


def _roles(model: str) -> dict[str, str]:
    """The names of the ensemble and its steps, and what each is."""
    prefix = "" if model == _DEFAULT_MODEL else f"{model}_"
    return {model: "ensemble", f"{prefix}tokenizer": "tokenizer", f"{prefix}bert": "bert"}


def _seen(part: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return part()
    except Exception:  # no answer, or anybody's: what is seen must not end what is looked at
        return {}


def _statistics(url: str) -> Any:
    """KServe's statistics of all models, as JSON."""
    parts = urlsplit(url)
    if parts.scheme in ("http", "https"):
        return json.loads(_get(f"{url.rstrip('/')}/v2/models/stats"))
    import tritonclient.grpc as grpcclient  # not loaded where HTTP is all that is asked for

    with grpcclient.InferenceServerClient(parts.netloc, ssl=parts.scheme == "grpcs") as client:
        return client.get_inference_statistics(as_json=True, client_timeout=TIMEOUT_S)


def _step_counters(entry: Mapping[str, Any], role: str) -> StepCounters:
    """Of one model; in JSON from gRPC integers are strings, and zeros are left out."""
    stages = entry["inference_stats"]

    def total(unit: str, *names: str) -> int:
        return sum(int(stages.get(name, {}).get(unit, 0)) for name in names)

    # Triton server adds an ensemble's up from its steps'.
    is_step = role != "ensemble"
    return StepCounters(
        requests=total("count", "success"),
        failures=total("count", "fail"),
        texts=int(entry.get("inference_count", 0)),
        executions=int(entry.get("execution_count", 0)),
        total_ns=total("ns", "success"),
        queue_ns=total("ns", "queue"),
        compute_ns=total("ns", *_COMPUTE) if is_step else 0,
        batch_sizes={
            int(batch["batch_size"]): int(batch["compute_infer"].get("count", 0))
            for batch in entry.get("batch_stats", ())
            if is_step
        },
    )


def _get(url: str) -> bytes:
    """The body that a GET answers, on a connection of its own: an idle one delays a server's stop.

    Raises:
        OSError: No answer in TIMEOUT_S.
        http.client.HTTPException: Another status than 200, or no HTTP.
    """
    started_s = time.monotonic()
    parts = urlsplit(url)
    secure, plain = http.client.HTTPSConnection, http.client.HTTPConnection
    connection = (secure if parts.scheme == "https" else plain)(parts.netloc, timeout=TIMEOUT_S)
    with contextlib.closing(connection):
        connection.connect()
        # A socket's timeout is that of each piece of an answer; this one is the whole answer's.
        left_s = TIMEOUT_S - (time.monotonic() - started_s)
        overdue = threading.Timer(left_s, connection.sock.shutdown, [socket.SHUT_RDWR])
        overdue.start()
        try:
            connection.request("GET", parts.path or "/")
            answer = connection.getresponse()
            body = answer.read()
        finally:
            overdue.cancel()
    if answer.status != http.client.OK:
        raise http.client.HTTPException(f"{url} answered {answer.status}")
    return body


def _tree(pid: int | None) -> list[psutil.Process]:
    """A process and those below it; none where it has ended."""
    if pid is None:
        return []
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _check_url(url: str, *schemes: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in schemes or not parts.hostname:
        wanted = " or ".join(f"{scheme}://" for scheme in schemes)
        raise ValueError(f"{url!r} is no url to look at a server by; {wanted} is wanted")
