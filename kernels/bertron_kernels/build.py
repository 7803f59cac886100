"""Compiles the CPU library: ``python -m bertron_kernels.build``.

Needs g++ and the installed torch, and takes seconds. Without it the ops run on PyTorch's own
operators. One library holds every instruction set and chooses when it is loaded, so what was built
on one x86-64 machine runs on another.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from bertron_kernels.native import LIBRARY

SOURCES = Path(__file__).with_name("csrc")
COMPILE_TIMEOUT_S = 300

_AVX512 = ["-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni"]
# What each file is compiled for, beyond x86-64; ops.cpp asks the CPU before it calls one.
INSTRUCTION_SETS = {
    "kernels_avx2.cpp": ["-mavx2", "-mfma"],
    "kernels_avx512_vnni.cpp": _AVX512,
    "kernels_avx512_bf16.cpp": [*_AVX512, "-mavx512bf16"],
    "kernels_amx.cpp": [*_AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16", "-mamx-int8"],
    "ops.cpp": [],
    "team.cpp": [],
}
FLAGS = [
    *("-std=c++20", "-O2", "-fPIC", "-Wall", "-Wextra", "-Wno-psabi", "-Werror"),
    # Multiply-adds may fuse; nothing asks for errno or floating-point traps. NaN stays NaN.
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
    # Packed words are written as the floats, bf16 or bytes that they hold.
    "-fno-strict-aliasing",
    # A tile's loop is two lines of code; across three a long product took 5 % more time on a Zen 3.
    "-falign-loops=64",
    f"-fmacro-prefix-map={SOURCES}/=",  # errors name ops.cpp, not where it was compiled
    "-DTORCH_TARGET_VERSION=0x020a000000000000",  # PyTorch 2.10's stable interface
]


class BuildError(Exception):
    """The library was not built; the message says why, in a line or with the compiler's words."""


def build(
    library: Path = LIBRARY,
    *,
    extra_flags: tuple[str, ...] = (),
    instruction_sets: Mapping[str, list[str]] = INSTRUCTION_SETS,
) -> bool:
    """Compile the library unless it is up to date.

    Args:
        library: Where it goes; a file of its own name ending in ``.txt`` beside it says from what.
        extra_flags: For the compiler and the linker, such as sanitizers.
        instruction_sets: By source file, the flags that only it gets.

    Returns:
        Whether anything was compiled.

    Raises:
        BuildError: No compiler, another kind of machine, or the compiler refused.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        raise BuildError("g++ is not installed (Debian: apt-get install g++)")
    if platform.machine() != "x86_64":
        raise BuildError(f"the CPU library is for x86_64, this is {platform.machine()}")
    stamp, note = _stamp(extra_flags, instruction_sets), library.with_suffix(".txt")
    if library.exists() and note.exists() and note.read_text() == stamp:
        return False
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as directory:
        built = _compile(compiler, Path(directory), extra_flags, instruction_sets)
        note.unlink(missing_ok=True)
        built.replace(library)
    note.write_text(stamp)
    return True


def _compile(
    compiler: str,
    directory: Path,
    extra_flags: tuple[str, ...],
    instruction_sets: Mapping[str, list[str]],
) -> Path:
    import torch

    home = Path(torch.__file__).parent
    include = ["-isystem", str(home / "include")]
    commands = []
    for name, instruction_set in instruction_sets.items():
        command = [compiler, *FLAGS, *instruction_set, *extra_flags, *include]
        commands.append([*command, "-c", str(SOURCES / name), "-o", str(directory / f"{name}.o")])
    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(_run, commands))
    library = directory / LIBRARY.name
    objects = [str(directory / f"{name}.o") for name in instruction_sets]
    # NEEDED, so that it also loads into a process that has not loaded PyTorch yet.
    link = [compiler, "-shared", *extra_flags, *objects, f"-L{home / 'lib'}", "-ltorch_cpu"]
    _run([*link, "-o", str(library)])
    return library


def _run(command: list[str]) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=False
    )
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stderr.strip()}")


def _stamp(extra_flags: tuple[str, ...], instruction_sets: Mapping[str, list[str]]) -> str:
    import torch

    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    each = (flag for flags in instruction_sets.values() for flag in flags)
    flags = " ".join([*FLAGS, *extra_flags, *each])
    return f"sources {digest.hexdigest()}\ntorch {torch.__version__}\nflags {flags}\n"


def main() -> int:
    """Build, and say how it went; a machine without a compiler is no failure."""
    started = time.monotonic()
    try:
        compiled = build()
    except BuildError as error:
        sys.stderr.write(f"The CPU library was not built, PyTorch's operators serve: {error}\n")
        return 0 if shutil.which("g++") is None else 1
    took = f"compiled in {time.monotonic() - started:.1f} s" if compiled else "is up to date"
    sys.stderr.write(f"{LIBRARY.name} {took}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
