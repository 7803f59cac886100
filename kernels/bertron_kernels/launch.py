"""One kernel launch, decided but not yet made.

A launcher first plans: which kernel, which grid, which tile sizes. The plan holds everything that
decides what is compiled, so that the same plan can be run, or compiled ahead for a GPU that is not
there.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bertron_kernels.language import TensorDescriptor

FIRST_WITH_BULK = 90  # sm_90 is the first with a copy unit (TMA)
BULK_ALIGNMENT = 16  # bytes, of a tensor's beginning and of its rows, that the copy unit asks for

TYPE_NAMES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.int32: "i32",
    torch.int64: "i64",
}


@dataclass(frozen=True)
class RowTile:
    """What one program of a kernel without a matrix product holds: whole rows, or parts of them.

    Attributes:
        elements: Of all its rows together.
        num_warps: Warps of 32 threads.
    """

    elements: int
    num_warps: int


@dataclass(frozen=True)
class Launch:
    """A kernel with its grid and all its arguments.

    Attributes:
        kernel: The function decorated with ``triton.jit``.
        grid: Programs along each axis; CUDA allows 2^31 - 1, 65535, 65535.
        arguments: Run-time arguments by name, in the kernel's order. None is compiled in.
        constants: ``tl.constexpr`` arguments by name: each new value is a new compilation.
        num_warps: Warps of 32 threads a program.
        num_stages: Depth of the software pipeline of loads in the kernel's loop.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    constants: Mapping[str, int | float | bool | str]
    num_warps: int
    num_stages: int = 1

    @property
    def overlaps(self) -> bool:
        """Whether it is started before the kernel ahead has ended: one that waits by itself."""
        return bool(self.constants.get("OVERLAPS"))

    @property
    def options(self) -> dict[str, int | bool]:
        """What the Triton compiler takes besides the arguments."""
        options: dict[str, int | bool] = {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
        }
        return options | {"launch_pdl": True} if self.overlaps else options

    def run(self) -> None:
        """Start the kernel on the current stream of its tensors' device; does not wait."""
        if 0 in self.grid:
            return
        first = next(value for value in self.arguments.values() if isinstance(value, torch.Tensor))
        if first.is_cuda and first.get_device() != torch.cuda.current_device():
            with torch.cuda.device(first.device):
                self._start()
        else:
            self._start()

    def _start(self) -> None:
        self.kernel[self.grid](**self.arguments, **self.constants, **self.options)

    def signature(self) -> dict[str, str]:
        """The type of every parameter as the Triton compiler writes it, by name."""
        types: dict[str, str] = {}
        for name, value in self.arguments.items():
            if isinstance(value, torch.Tensor):
                types[name] = "*" + TYPE_NAMES[value.dtype]
            elif isinstance(value, TensorDescriptor):
                block = ",".join(map(str, value.block_shape))
                types[name] = f"tensordesc<{TYPE_NAMES[value.base.dtype]}[{block}]>"
            elif value is None:
                types[name] = "constexpr"
            else:
                types[name] = "fp32" if isinstance(value, float) else "i32"
        return types | dict.fromkeys(self.constants, "constexpr")


@functools.cache
def capability(device: int) -> int:
    """Compute capability of a CUDA device: 90 for 9.0."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def multiprocessors(tensor: torch.Tensor) -> int:
    """Of the tensor's device, on each of which a program can run; 1 where there is no device."""
    return _multiprocessors(tensor.get_device()) if tensor.is_cuda else 1


@functools.cache
def _multiprocessors(device: int) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def next_power_of_2(number: int) -> int:
    """The smallest power of two that is not below ``number`` (at least 1)."""
    return 1 << max(number - 1, 0).bit_length()


def ceil_div(number: int, divisor: int) -> int:
    """``number / divisor``, rounded up."""
    return -(-number // divisor)
