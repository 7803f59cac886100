"""Compiles the CPU library: ``python -m bertron_kernels.build``.

Needs g++ and the installed torch, and takes about a minute. Without it the ops run on PyTorch's
own operators. One library holds every instruction set and chooses when it is loaded, so what was
built on one x86-64 machine runs on another.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from bertron_kernels.native import (
    LIBRARY,
    SOURCES,
    check_intact,
    digest_of,
    digest_of_sources,
    note_of,
    read_note,
)

COMPILE_TIMEOUT_S = 300
LOAD_TIMEOUT_S = 60  # mostly PyTorch's own, from a disk that has not read it yet
MIN_GCC = 11  # the first that knows AMX's instructions

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
    # A warning of a compiler that we have not tried is no reason to refuse; the tests add -Werror.
    *("-std=c++20", "-O2", "-fPIC", "-Wall", "-Wextra", "-Wno-psabi"),
    # Multiply-adds may fuse; nothing asks for errno or floating-point traps. NaN stays NaN.
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
    # Packed words are written as the floats, bf16 or bytes that they hold.
    "-fno-strict-aliasing",
    # A tile's loop is two lines of code; across three a long product took 5 % more time on a Zen 3.
    "-falign-loops=64",
    "-DTORCH_TARGET_VERSION=0x020a000000000000",  # PyTorch 2.10's stable interface
]


class BuildError(Exception):
    """The library was not built; the message says why, in a line or with the compiler's words."""


def build(
    library: Path = LIBRARY,
    *,
    extra_flags: tuple[str, ...] = (),
    instruction_sets: Mapping[str, list[str]] = INSTRUCTION_SETS,
    tried: bool = True,
) -> bool:
    """Compile the library unless it is up to date.

    Args:
        library: Where it goes; a file of its own name ending in ``.txt`` beside it says from what.
        extra_flags: For the compiler and the linker, such as sanitizers.
        instruction_sets: By source file, the flags that only it gets.
        tried: Whether it counts only if a process can load it; with sanitizers few can.

    Returns:
        Whether anything was compiled.

    Raises:
        BuildError: No compiler that is new enough, another kind of machine, nowhere to write, or
            the compiler refused.
    """
    stamp = _stamp(extra_flags, instruction_sets)
    try:
        _sweep(library)
        is_ours = library.exists() and stamp.items() <= read_note(library).items()
        if is_ours and not (tried and why_not_loaded(library)):
            return False
        compiler = _compiler()
        library.parent.mkdir(parents=True, exist_ok=True)
        with _own_directory(library) as directory:
            built = _compile(compiler, directory, extra_flags, instruction_sets)
            if tried and (reason := why_not_loaded(built)):
                raise BuildError(f"what was compiled does not load: {reason}")
            lines = (stamp | {"library": digest_of(built)}).items()
            note = note_of(built)
            note.write_text("".join(f"{name} {value}\n" for name, value in lines), encoding="utf-8")
            note_of(library).unlink(missing_ok=True)
            built.replace(library)
            note.replace(note_of(library))
    except OSError as error:  # a file system that is full or read-only, a file for a folder
        raise BuildError(str(error)) from error
    return True


def why_not_loaded(library: Path) -> str | None:
    """Load it in a process of its own, which that may end; what went wrong, or None."""
    program = "import ctypes, sys, torch; ctypes.CDLL(sys.argv[1]).bertron_cpu_kernels"
    try:
        check_intact(library)
        done = subprocess.run(
            [sys.executable, "-c", program, str(library.absolute())],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LOAD_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it was not loaded after {LOAD_TIMEOUT_S} s"
    except OSError as error:
        return str(error)
    if done.returncode < 0:
        return f"it ends the process: {signal.strsignal(-done.returncode)}"
    if done.returncode:
        return (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
    return None


def _stamp(
    extra_flags: tuple[str, ...], instruction_sets: Mapping[str, list[str]]
) -> dict[str, str]:
    """What the library depends on, as its note has it; not where the checkout is."""
    import torch

    sources = digest_of_sources()
    if sources is None:
        raise BuildError(f"there are no sources in {SOURCES}")
    each = (flag for flags in instruction_sets.values() for flag in flags)
    flags = " ".join([*FLAGS, *extra_flags, *each])
    return {"sources": sources, "torch": torch.__version__, "flags": flags}


def _compiler() -> str:
    needed = f"GCC {MIN_GCC} or newer is needed"
    if platform.machine() != "x86_64":
        raise BuildError(f"the CPU library is for x86_64, this is {platform.machine()}")
    compiler = shutil.which("g++")
    if compiler is None:
        raise BuildError(f"g++ is not installed, {needed} (Debian: apt-get install g++)")
    try:
        version = _run([compiler, "-dumpversion"]).strip()
    except BuildError:
        version = "unknown"
    major = version.partition(".")[0]
    if not major.isdecimal() or int(major) < MIN_GCC:
        raise BuildError(f"{compiler} is of version {version}, {needed}")
    return compiler


@contextlib.contextmanager
def _own_directory(library: Path) -> Iterator[Path]:
    """A directory beside the library that is locked for as long as this process builds in it."""
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=_prefix(library)) as name:
        descriptor = os.open(name, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # not every file system locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield Path(name)
        finally:
            os.close(descriptor)


def _sweep(library: Path) -> None:
    """Remove what builds left that were killed: their directories, which nobody locks any more."""
    for left in library.parent.glob(f"{_prefix(library)}*"):
        with contextlib.suppress(OSError):  # locked, gone, or not to be locked here
            descriptor = os.open(left, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)
            finally:
                os.close(descriptor)


def _prefix(library: Path) -> str:
    return f".{library.name}-"


def _compile(
    compiler: str,
    directory: Path,
    extra_flags: tuple[str, ...],
    instruction_sets: Mapping[str, list[str]],
) -> Path:
    import torch

    home = Path(torch.__file__).parent
    # Errors name ops.cpp, not where it was compiled.
    places = ["-isystem", str(home / "include"), f"-fmacro-prefix-map={SOURCES}/="]
    commands = []
    for name, instruction_set in instruction_sets.items():
        command = [compiler, *FLAGS, *instruction_set, *extra_flags, *places]
        commands.append([*command, "-c", str(SOURCES / name), "-o", str(directory / f"{name}.o")])
    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(_run, commands))
    library = directory / LIBRARY.name
    objects = [str(directory / f"{name}.o") for name in instruction_sets]
    # NEEDED, so that it also loads into a process that has not loaded PyTorch yet.
    link = [compiler, "-shared", *extra_flags, *objects, f"-L{home / 'lib'}", "-ltorch_cpu"]
    _run([*link, "-o", str(library)])
    return library


def _run(command: list[str]) -> str:
    """What it prints."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMPILE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BuildError(f"{command[0]} took longer than {COMPILE_TIMEOUT_S} s") from None
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stderr.strip()}")
    return done.stdout


def main() -> int:
    """Build, and say how it went and what serves; 0 only with a library of these sources."""
    started = time.monotonic()
    try:
        compiled = build()
    except BuildError as error:
        serves = (
            "PyTorch's operators serve" if why_not_loaded(LIBRARY) else "the one before serves on"
        )
        sys.stderr.write(f"The CPU library was not built, {serves}: {error}\n")
        return 1
    took = f"compiled in {time.monotonic() - started:.1f} s" if compiled else "is up to date"
    sys.stderr.write(f"{LIBRARY.name} {took}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
