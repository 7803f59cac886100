"""OpenVINO and ONNX Runtime: their environment, and the process that runs them there.

They stay out of the project's own environment, which is small and pinned for what is shipped.
"""

import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import BUILD, Checkpoint
from measuring import ROOT
from workloads import Workload

VENV = BUILD / "peers-venv"
PYTHON = VENV / "bin" / "python"
# torch first and from our constraints: a looser requirement would fetch a build for CUDA.
FIRST = ("torch",)
PINNED = (
    "transformers==5.23.0",
    "openvino==2026.4.1",
    "onnx==1.23.2",
    "onnxruntime==1.32.0",
    "onnxscript==0.7.2",  # torch.onnx asks for it
    "matplotlib==3.11.2",  # for scaling's picture
)
INSTALL_TIMEOUT_S = 600
ANSWER_TIMEOUT_S = 180  # of the slowest command: converting BERT-base for both


class PeersError(Exception):
    """They cannot be measured; the message says why, in a line."""


def install() -> Path:
    """Make the environment unless it is there; its Python.

    Raises:
        PeersError: It cannot be made.
    """
    stamp = VENV / ".installed"
    pins = [line for line in _constraints() if line.partition("==")[0] in FIRST]
    wanted = "\n".join([*pins, *PINNED])
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return PYTHON
    sys.stderr.write(f"installing the peers into {VENV.relative_to(ROOT)}\n")
    deadline = time.monotonic() + INSTALL_TIMEOUT_S
    pip = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    index = os.environ.get("TORCH_INDEX_URL")
    extra = ["--extra-index-url", index] if index else []
    for command in (
        [sys.executable, "-m", "venv", str(VENV)],
        [*pip, *pins, *extra, "--constraint", str(ROOT / "constraints.txt")],
        [*pip, *pins, *PINNED],
    ):
        _run(command, deadline - time.monotonic())
    stamp.write_text(wanted, encoding="utf-8")
    return PYTHON


def _constraints() -> list[str]:
    return (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()


def _run(command: list[str], timeout_s: float) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeersError(f"not installed: {error}") from error
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise PeersError(f"not installed: {last}")


class Peers:
    """The process. Use as a context manager.

    Raises:
        PeersError: It cannot be installed, does not start or does not answer.
    """

    def __init__(self) -> None:
        python = install()
        self._folder = tempfile.TemporaryDirectory(prefix="bertron-bench-")
        self._errors = (Path(self._folder.name) / "stderr").open("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            [str(python), str(Path(__file__).with_name("peers_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._process.stdout, selectors.EVENT_READ)
        self.versions: dict[str, str] = self._ask("versions")

    def __enter__(self) -> "Peers":
        return self

    def __exit__(self, *_exc: object) -> None:
        self._process.kill()
        self._process.wait(timeout=10)
        self._selector.close()
        self._process.stdin.close()
        self._process.stdout.close()
        self._errors.close()
        self._folder.cleanup()

    def load(self, checkpoint: Checkpoint) -> None:
        """Convert ``checkpoint`` for both engines; ONNX files are kept by its weights' time."""
        weights = checkpoint.directory / "model.safetensors"
        folder = BUILD / "peers" / f"{checkpoint.name}-{weights.stat().st_mtime_ns:x}"
        self._ask("load", checkpoint=str(checkpoint.directory), folder=str(folder))

    def _hand_over(self, workload: Workload) -> None:
        file = Path(self._folder.name) / "workload.npz"
        arrays = {f"ids_{n}": batch.input_ids for n, batch in enumerate(workload.batches)}
        arrays |= {f"mask_{n}": batch.attention_mask for n, batch in enumerate(workload.batches)}
        np.savez(file, **arrays)
        self._ask("workload", file=str(file))

    def vectors(self, engine: str, workload: Workload) -> np.ndarray:
        """[texts, E] of ``workload``, which is what ``seconds`` times from now on."""
        self._hand_over(workload)
        file = Path(self._folder.name) / "vectors.npy"
        self._ask("run", engine=engine, vectors=str(file))
        return np.load(file)

    def seconds(self, engine: str) -> float:
        """One pass over the last workload, as the process itself measured it."""
        return float(self._ask("run", engine=engine))

    def _ask(self, command: str, **arguments: str) -> Any:
        try:
            self._process.stdin.write(json.dumps({"do": command, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise PeersError(f"ended: {self._last_words()}") from None
        if not self._selector.select(ANSWER_TIMEOUT_S):
            raise PeersError(f"no answer to {command} in {ANSWER_TIMEOUT_S} s")
        line = self._process.stdout.readline()
        if not line:
            raise PeersError(f"ended: {self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise PeersError(answer["error"])
        return answer["ok"]

    def _last_words(self) -> str:
        self._errors.seek(0)
        return (self._errors.read().strip() or "without a word").splitlines()[-1]
