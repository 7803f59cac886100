"""What the kernel tests share: the implementations under test, the gates, packed sequences."""

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from bertron_kernels import implementation as chosen
from bertron_kernels.native import CHOICES
from emulated_cpu import EMULATED, build_emulated
from kernel_launchers import LAUNCHERS
from torch import Tensor

SUPPORT = str(Path(__file__).parents[1] / "support")
HAS_GPU = torch.cuda.is_available()

# The norm of the error against float64, relative to the norm of the result.
GATES = {torch.float32: 1e-5, torch.float16: 5e-4, torch.bfloat16: 4e-3}

# Every choice that this machine has: each includes those before it. Then those that it has not.
ON_CPU = [*CHOICES[: CHOICES.index(chosen("cpu")) + 1], *EMULATED]

# The interpreter multiplies the bit patterns of bf16 in tl.dot; the CPU library takes no fp16.
COMBINATIONS = [
    ("kernel", torch.float32),
    ("kernel", torch.float16),
    *([("kernel", torch.bfloat16)] if HAS_GPU else []),
    *((name, dtype) for name in ON_CPU for dtype in (torch.float32, torch.bfloat16)),
]


NO_LIBRARY = pytest.mark.skip("the CPU library is not built: python -m bertron_kernels.build")


class OpWorker:
    """The other end of ``op_worker.py``.

    Args:
        choice: What runs the ops.
        environment: Added to this process's own.
        num_threads: Of PyTorch, unless a call says otherwise.
    """

    def __init__(
        self, choice: str, environment: Mapping[str, str] | None = None, num_threads: int = 2
    ) -> None:
        self.choice = choice
        self._num_threads = num_threads
        chosen_by = "TRITON_INTERPRET" if choice == "interpreter" else "BERTRON_CPU_KERNELS"
        value = "1" if choice == "interpreter" else choice
        paths = os.pathsep.join([SUPPORT, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("op_worker.py"), choice],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths, chosen_by: value, **(environment or {})},
        )

    def run(
        self, op: str, *arguments: Any, num_threads: int | None = None, callers: int = 0
    ) -> Tensor:
        """An op's result, or with ``callers`` [callers, ...] of threads that call it at once."""
        message = {
            "op": op,
            "arguments": arguments,
            "num_threads": num_threads or self._num_threads,
            "callers": callers,
        }
        buffer = io.BytesIO()
        torch.save(message, buffer)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(len(buffer.getvalue()).to_bytes(8) + buffer.getvalue())
        self._process.stdin.flush()
        header = self._process.stdout.read(8)
        if not header:
            pytest.fail(f"the process of {self.choice} ended with {self._process.wait()}")
        reply = torch.load(io.BytesIO(self._process.stdout.read(int.from_bytes(header))))
        if "error" in reply:
            raise {"ValueError": ValueError}.get(reply["error"], RuntimeError)(reply["message"])
        return reply["out"]

    def close(self) -> None:
        self._process.communicate(timeout=30)


def run_on_gpu(op: str, *arguments: Any) -> Tensor:
    on_gpu = [a.cuda() if isinstance(a, Tensor) else a for a in arguments]
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN
    try:
        return LAUNCHERS[op](*on_gpu).cpu()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def run_kernel() -> Iterator[Callable[..., Tensor]]:
    """A launcher by name: on the GPU, or under the interpreter where there is none."""
    if HAS_GPU:
        yield run_on_gpu
        return
    worker = OpWorker("interpreter")
    yield worker.run
    worker.close()


@pytest.fixture(scope="session")
def emulated_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_emulated(tmp_path_factory.mktemp("emulated"))


@pytest.fixture(scope="session")
def on_cpu(request: pytest.FixtureRequest) -> Iterator[Callable[[str], OpWorker]]:
    """The process that runs the ops on one of the CPU's choices, by name."""
    workers: dict[str, OpWorker] = {}

    def started(choice: str) -> OpWorker:
        if choice not in workers:
            environment = {}
            if choice in EMULATED:  # built once, also where that fails
                environment["BERTRON_CPU_LIBRARY"] = str(
                    request.getfixturevalue("emulated_library")
                )
            workers[choice] = OpWorker(choice, environment)
        return workers[choice]

    yield started
    for worker in workers.values():
        worker.close()


@pytest.fixture(params=ON_CPU)
def cpu(request: pytest.FixtureRequest, on_cpu: Callable[[str], OpWorker]) -> OpWorker:
    """Each of the CPU's choices."""
    return on_cpu(request.param)


@pytest.fixture(params=[c for c in ON_CPU if c != "eager"] or [pytest.param("", marks=NO_LIBRARY)])
def library(request: pytest.FixtureRequest, on_cpu: Callable[[str], OpWorker]) -> OpWorker:
    """Each of the CPU library's instruction sets."""
    return on_cpu(request.param)


@pytest.fixture(scope="session")
def start_worker() -> type[OpWorker]:
    """For a worker with an environment of its own; its caller closes it."""
    return OpWorker


@pytest.fixture
def refused() -> Callable[[str], Any]:
    """``pytest.raises``: the launchers and eager raise ValueError, the library RuntimeError."""
    return lambda match: pytest.raises((ValueError, RuntimeError), match=match)


class Implementation:
    """An implementation of the ops, and the dtype to try it in."""

    def __init__(self, name: str, run: Callable[..., Tensor], dtype: torch.dtype) -> None:
        self.name = name
        self.run = run
        self.dtype = dtype

    def check(
        self,
        out: Tensor,
        exact: Tensor,
        peer: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Hold ``out`` to the gates: ``exact`` float64, ``peer`` PyTorch's own in ``dtype``."""
        dtype = dtype or self.dtype
        assert out.dtype == dtype
        assert out.shape == exact.shape
        assert exact.dtype == torch.float64
        assert out.isfinite().all()
        error = out.double() - exact
        assert error.norm() <= GATES[dtype] * exact.norm()
        if peer is not None and peer.numel():
            rounding = torch.finfo(dtype).eps * exact.abs().max()
            peer_error = (peer.double() - exact).abs().max()
            assert error.abs().max() <= 2 * peer_error + rounding


@pytest.fixture(
    params=COMBINATIONS, ids=[f"{name}-{str(dtype)[6:]}" for name, dtype in COMBINATIONS]
)
def implementation(request: pytest.FixtureRequest) -> Implementation:
    name, dtype = request.param
    return Implementation(name, runner(request, name), dtype)


@pytest.fixture(params=["kernel", *ON_CPU])
def run(request: pytest.FixtureRequest) -> Callable[..., Tensor]:
    """Any implementation, where the dtype does not matter."""
    return runner(request, request.param)


def runner(request: pytest.FixtureRequest, name: str) -> Callable[..., Tensor]:
    if name == "kernel":
        return request.getfixturevalue("run_kernel")
    return request.getfixturevalue("on_cpu")(name).run


@pytest.fixture
def randn() -> Callable[..., Tensor]:
    """Normal random numbers, the same in every run."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    return draw


@pytest.fixture
def packed() -> Callable[[list[int]], Tensor]:
    """cu_seqlens of sequences of these lengths."""
    return lambda lengths: torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
