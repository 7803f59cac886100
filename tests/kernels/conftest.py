"""What the kernel tests share: the implementations under test, the gates, packed sequences."""

import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import bertron_kernels  # noqa: F401  registers torch.ops.bertron
import pytest
import torch
from bertron_kernels.ops import KERNELS
from torch import Tensor

HAS_GPU = torch.cuda.is_available()

# The norm of the error against float64, relative to the norm of the result.
GATES = {torch.float32: 1e-5, torch.float16: 5e-4, torch.bfloat16: 4e-3}

# The interpreter multiplies the bit patterns of bf16 in tl.dot; the CPU has no fast fp16.
COMBINATIONS = [
    ("kernel", torch.float32),
    ("kernel", torch.float16),
    *([("kernel", torch.bfloat16)] if HAS_GPU else []),
    ("cpu", torch.float32),
    ("cpu", torch.bfloat16),
]


class InterpreterWorker:
    """The other end of ``interpreter_worker.py``."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("interpreter_worker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def run(self, op: str, *arguments: Any) -> Tensor:
        buffer = io.BytesIO()
        torch.save({"op": op, "arguments": arguments}, buffer)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(len(buffer.getvalue()).to_bytes(8) + buffer.getvalue())
        self._process.stdin.flush()
        header = self._process.stdout.read(8)
        if not header:
            pytest.fail(f"the interpreter's process ended with {self._process.wait()}")
        reply = torch.load(io.BytesIO(self._process.stdout.read(int.from_bytes(header))))
        if "error" in reply:
            raise ValueError(reply["error"])
        return reply["out"]

    def close(self) -> None:
        self._process.communicate(timeout=30)


def run_on_gpu(op: str, *arguments: Any) -> Tensor:
    on_gpu = [a.cuda() if isinstance(a, Tensor) else a for a in arguments]
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN
    try:
        return KERNELS[op](*on_gpu).cpu()
    finally:
        torch.use_deterministic_algorithms(False)


def run_on_cpu(op: str, *arguments: Any) -> Tensor:
    torch.use_deterministic_algorithms(True)
    try:
        with torch.inference_mode():
            return getattr(torch.ops.bertron, op)(*arguments)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def run_kernel() -> Iterator[Callable[..., Tensor]]:
    """A launcher by name: on the GPU, or under the interpreter where there is none."""
    if HAS_GPU:
        yield run_on_gpu
        return
    worker = InterpreterWorker()
    yield worker.run
    worker.close()


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
    run = run_on_cpu if name == "cpu" else request.getfixturevalue("run_kernel")
    return Implementation(name, run, dtype)


@pytest.fixture(params=["kernel", "cpu"])
def run(request: pytest.FixtureRequest) -> Callable[..., Tensor]:
    """Any implementation, where the dtype does not matter."""
    return run_on_cpu if request.param == "cpu" else request.getfixturevalue("run_kernel")


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
