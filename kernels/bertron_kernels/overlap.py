"""Programs that start while the kernel ahead of them still runs (programmatic dependent launch).

A small batch is dozens of kernels of a few microseconds, and between two of them the chip drains
and fills again. A kernel that overlaps is started as soon as every program of the one ahead has
begun; it brings its weights nearer, which nobody writes, and waits before it reads anything else.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from bertron_kernels.language import tl, triton
from bertron_kernels.launch import capability

FIRST_WITH_OVERLAP = 90  # sm_90 is the first whose kernels can be started early

# The most tokens of a batch whose kernels overlap, by compute capability. Empty until a GPU has
# timed it: part `tune` of `make bench-gpu` prints the lines.
OVERLAPPED_TOKENS: Mapping[int, int] = {}


def overlaps(tensor: torch.Tensor, num_tokens: int) -> bool:
    """Whether the kernels of a batch of so many tokens overlap on the tensor's device."""
    if not tensor.is_cuda:
        return False
    return num_tokens <= OVERLAPPED_TOKENS.get(capability(tensor.get_device()), 0)


@triton.jit
def let_next_start():
    """The next kernel may start once every program of this one has come here."""
    tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait_for_previous():
    """Until the kernel ahead has ended and what it wrote can be read; at once if it has.

    Every program of an overlapping kernel must come here before it reads or writes what another
    kernel writes or reads: the one ahead has waited in the same way, so that all before it have
    ended too.
    """
    tl.extra.cuda.gdc_wait()


@triton.jit
def prefetch(pointers):
    """Bring the 128 bytes around each pointer into the second cache; nothing waits for them."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [pointers.to(tl.int64)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
