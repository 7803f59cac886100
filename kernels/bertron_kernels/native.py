"""Loads the CPU library that ``bertron_kernels.build`` compiles, where there is one.

``BERTRON_CPU_KERNELS`` chooses what the CPU runs: ``eager`` for PyTorch's own operators, or one of
the library's instruction sets by name; unset, the best that the machine has.
``BERTRON_CPU_LIBRARY`` loads another build of the library, such as one with sanitizers.
"""

from __future__ import annotations

import ctypes
import os
import warnings
from pathlib import Path

import torch

LIBRARY = Path(__file__).with_name("lib") / "libbertron_cpu.so"
CHOICES = ("eager", "avx2", "avx512_vnni", "avx512_bf16", "amx")


def _load() -> str | None:
    """Register the library's ops; the instruction set it chose, or None without one."""
    wanted = os.environ.get("BERTRON_CPU_KERNELS") or None
    if wanted not in (None, *CHOICES):
        raise RuntimeError(f"BERTRON_CPU_KERNELS is {wanted!r}, expected {', '.join(CHOICES)}")
    path = Path(os.environ.get("BERTRON_CPU_LIBRARY") or LIBRARY)
    if wanted == "eager" or not path.exists():
        return None
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return None
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:  # built for another PyTorch, or another machine
        warnings.warn(
            f"{path} does not load, PyTorch's operators serve: {error}; "
            "build it again with python -m bertron_kernels.build",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    chosen = library.bertron_cpu_kernels
    chosen.restype = ctypes.c_char_p
    name = chosen()
    if name is None:
        raise RuntimeError(
            f"this machine does not offer the instructions of {wanted or CHOICES[1]}; unset"
            " BERTRON_CPU_KERNELS, or set it to eager to run PyTorch's operators"
        )
    return bytes(name).decode()


# Read once: the ops are registered for the life of the process.
INSTRUCTION_SET = _load()
# Whether bfloat16 is a fast type on this CPU; where not, float32 is quicker and exacter.
HAS_FAST_BF16 = (
    INSTRUCTION_SET in ("avx512_bf16", "amx")
    if INSTRUCTION_SET is not None
    else torch.cpu._is_avx512_bf16_supported()
)
