"""The CPU library with the instructions that this machine lacks in C++: slow, and as exact.

Whoever changes a kernel on a machine without AVX-512 or AMX sees there what it does with them.
"""

import shutil
from pathlib import Path

from bertron_kernels.build import INSTRUCTION_SETS, build
from bertron_kernels.native import CHOICES, INSTRUCTION_SET

_INSTRUCTIONS = Path(__file__).with_name("emulated_instructions.h")
_SUPPORTS_ALL = Path(__file__).with_name("emulated_cpu_supports.h")
_INSTEAD = [*INSTRUCTION_SETS["kernels_avx2.cpp"], "-include", str(_INSTRUCTIONS)]
_FLAGS = INSTRUCTION_SETS | {
    "kernels_avx512_vnni.cpp": _INSTEAD,
    "kernels_avx512_bf16.cpp": [*_INSTEAD, "-DEMULATE_BF16"],
    "kernels_amx.cpp": [*_INSTEAD, "-DEMULATE_BF16", "-DEMULATE_AMX"],
    "ops.cpp": ["-include", str(_SUPPORTS_ALL)],
}
# What the library has beyond what it chooses here.
EMULATED = (
    CHOICES[CHOICES.index(INSTRUCTION_SET) + 1 :]
    if INSTRUCTION_SET is not None and shutil.which("g++")
    else ()
)


def build_emulated(directory: Path, extra_flags: tuple[str, ...] = ()) -> Path:
    """Compile the library into ``directory``; half a minute."""
    path = directory / "libbertron_cpu.so"
    build(path, extra_flags=("-Werror", *extra_flags), instruction_sets=_FLAGS, tried=False)
    return path
