"""The peer infinity-emb: its environment, its server, and how it is asked."""

import base64
import contextlib
import http.client
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from bertron_loadtest.environments import CHECKOUT, make_environment, torch_install, versions_in
from bertron_loadtest.ports import free_port

VENV = CHECKOUT / "build" / "infinity-venv"
# optimum and transformers are the newest that still have bettertransformer, which is infinity's
# own default and drops padding; without optimum its flag is silently of no effect.
PINNED = (
    "infinity-emb[server,torch]==0.0.78",
    "sentence-transformers==3.4.1",
    "transformers==4.48.3",
    "optimum==1.27.0",
    "fastapi==0.165.0",
)
SHOWN_VERSIONS = ("infinity_emb", "torch", "transformers", "sentence-transformers", "optimum")
INSTALL_TIMEOUT_S = 600
SERVED_NAME = "peer"  # what requests call the model
# Tried in turns on 2 AVX2 cores with texts.txt, medians of 7 rounds, at 32 clients x 1 text and
# 4 x 32: 55 and 58 texts/s as here, 45 and 26 without bettertransformer, 41 and 38 with compile,
# which excludes it. Batches of 128 instead of infinity's own 32 were no faster. One thread
# (OMP_NUM_THREADS=1) was 15 % faster at 32 x 1 and 10 % slower at 4 x 32: they are left to torch.
FASTEST = ("--bettertransformer", "--no-compile", "--batch-size", "32")
STOP_TIMEOUT_S = 10.0
_POLL_S = 0.1
_HTTP_TIMEOUT_S = 2.0


def install() -> Path:
    """Make the environment unless it is there; its Python.

    Raises:
        OSError: It cannot be made.
    """
    torch = torch_install()
    return make_environment(VENV, [torch, [torch[0], *PINNED]], timeout_s=INSTALL_TIMEOUT_S)


class InfinityServer:
    """infinity-emb with one model on a free port, as a context manager.

    Entering installs it unless it is there, and returns when it answers; leaving stops it. If this
    process dies, the kernel sends the server SIGTERM.

    Args:
        checkpoint: sentence-transformers directory.
        dtype: Of weights and computation.
        ready_timeout_s: How long loading may take.
        log_path: A file for what it says; it is appended to.

    Attributes:
        url: Such as ``http://127.0.0.1:7997``.
        flags: What it is started with, in words.
        versions: Of what decides how fast it is, by package.

    Raises:
        OSError: On entering: it is not installed, or does not start; the message says why.
    """

    def __init__(
        self,
        checkpoint: Path,
        *,
        dtype: str = "float32",
        ready_timeout_s: float = 120,
        log_path: Path | None = None,
    ) -> None:
        self.url = ""
        self.versions: dict[str, str] = {}
        self._options = ["--engine", "torch", "--device", "cpu", "--dtype", dtype, *FASTEST]
        words = " ".join(self._options).split("--")
        self.flags = ", ".join(word.strip() for word in words if word)
        self._checkpoint = checkpoint
        self._ready_timeout_s = ready_timeout_s
        self._log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None
        self._on_exit = contextlib.ExitStack()

    @property
    def pid(self) -> int:
        """The process id; all of the server is in this process."""
        if self._process is None:
            raise ValueError("infinity_emb is not started")
        return self._process.pid

    def __enter__(self) -> Self:
        python = install()
        self.versions = versions_in(VENV, SHOWN_VERSIONS)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        with contextlib.ExitStack() as stack:
            home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="infinity-")))
            log_path = self._log_path or home / "log"
            self._process = stack.enter_context(
                _running(self._command(python, port), _variables(home), log_path)
            )
            _wait_until_ready(self._process, self.url, self._ready_timeout_s, log_path)
            self._on_exit = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._on_exit.close()
        self._process = None

    def _command(self, python: Path, port: int) -> list[str]:
        command = [str(python.with_name("infinity_emb")), "v2", "--host", "127.0.0.1"]
        command += ["--port", str(port), "--model-id", str(self._checkpoint.absolute())]
        command += ["--served-model-name", SERVED_NAME, "--log-level", "warning"]
        return [*command, *self._options]


def _variables(home: Path) -> dict[str, str]:
    """No statistics sent, nothing looked up, and its cache not in the working directory."""
    return {"DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "INFINITY_HOME": str(home)}


@contextlib.contextmanager
def _running(
    command: Sequence[str], variables: Mapping[str, str], log_path: Path
) -> Iterator[subprocess.Popen[bytes]]:
    from bertron_server import die_with_parent

    with log_path.open("ab") as log:
        process = subprocess.Popen(
            die_with_parent.tied([*command]),
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C in the terminal is ours to pass on
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(
    process: subprocess.Popen[bytes], url: str, timeout_s: float, log_path: Path
) -> None:
    deadline = time.monotonic() + timeout_s
    while not _is_healthy(url):
        words = log_path.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(words) if line.strip()), "no word")
        if process.poll() is not None:
            raise OSError(f"infinity_emb ended with {process.returncode}: {last}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"infinity_emb was not ready after {timeout_s:g} s: {last}")
        time.sleep(_POLL_S)


def _is_healthy(url: str) -> bool:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=_HTTP_TIMEOUT_S)
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False


def embeddings_request(texts: Sequence[str]) -> bytes:
    """Return the body of a POST to ``/embeddings``, which is JSON.

    infinity takes 1 to 2048 texts and answers others with 422; with 429 while more than 32,000
    texts wait, and 500 for what went wrong in it.
    """
    return json.dumps(
        {"model": SERVED_NAME, "input": list(texts), "encoding_format": "base64"}
    ).encode()


def read_embeddings_answer(body: bytes) -> NDArray[np.float32]:
    """Return the vectors of a good answer, [B, E], in the order of its request's texts.

    Each is read as base64 of little-endian float32, or as a list of numbers.

    Raises:
        ValueError: It is no such answer.
    """
    try:
        rows = [
            (int(item["index"]), _vector(item["embedding"])) for item in json.loads(body)["data"]
        ]
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"no answer of /embeddings: {error!r}") from None
    rows.sort(key=itemgetter(0))
    if not rows or [index for index, _ in rows] != list(range(len(rows))):
        raise ValueError(f"rows {[index for index, _ in rows]} are answered, 0, 1, ... are wanted")
    return np.stack([vector for _, vector in rows])  # ValueError where lengths differ


def _vector(embedding: Any) -> NDArray[np.float32]:
    """[E]."""
    if isinstance(embedding, str):
        decoded = base64.b64decode(embedding, validate=True)  # binascii.Error is a ValueError
        return np.frombuffer(decoded, "<f4").astype(np.float32, copy=False)
    vector = np.array(embedding, np.float32)
    if vector.ndim != 1:
        raise ValueError(f"an embedding has {vector.ndim} dimensions, 1 is wanted")
    return vector
