"""One kernel launch, decided but not yet made.

A launcher first plans: which kernel, which grid, which tile sizes. The plan holds everything that
decides what is compiled, so that the same plan can be run, or compiled ahead for a GPU that is not
there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

TYPE_NAMES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.int32: "i32",
    torch.int64: "i64",
}


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
    arguments: Mapping[str, torch.Tensor | int | float | None]
    constants: Mapping[str, int | float | bool | str]
    num_warps: int
    num_stages: int = 1

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
        self.kernel[self.grid](
            **self.arguments, **self.constants, num_warps=self.num_warps, num_stages=self.num_stages
        )

    def signature(self) -> dict[str, str]:
        """The type of every parameter as the Triton compiler writes it, by name."""
        types: dict[str, str] = {}
        for name, value in self.arguments.items():
            if isinstance(value, torch.Tensor):
                types[name] = "*" + TYPE_NAMES[value.dtype]
            elif value is None:
                types[name] = "constexpr"
            else:
                types[name] = "fp32" if isinstance(value, float) else "i32"
        return types | dict.fromkeys(self.constants, "constexpr")


def next_power_of_2(number: int) -> int:
    """The smallest power of two that is not below ``number`` (at least 1)."""
    return 1 << max(number - 1, 0).bit_length()


def ceil_div(number: int, divisor: int) -> int:
    """``number / divisor``, rounded up."""
    return -(-number // divisor)
