"""Loads the CPU library that ``bertron_kernels.build`` compiles, where there is one.

``BERTRON_CPU_KERNELS`` chooses what the CPU runs: ``eager`` for PyTorch's own operators, or one of
the library's instruction sets by name; unset, the best that the machine has.
``BERTRON_CPU_LIBRARY`` loads another build of the library, such as one with sanitizers. Where what
they ask for is not to be had, importing is an error; without them, PyTorch's operators serve.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
import warnings
from pathlib import Path

import torch

LIBRARY = Path(__file__).with_name("lib") / "libbertron_cpu.so"
SOURCES = Path(__file__).with_name("csrc")
CHOICES = ("eager", "avx2", "avx512_vnni", "avx512_bf16", "amx")
_VARIABLES = ("BERTRON_CPU_KERNELS", "BERTRON_CPU_LIBRARY")
_BUILD = "python -m bertron_kernels.build"


def note_of(library: Path) -> Path:
    """The file beside a library that says what it was built from."""
    return library.with_suffix(".txt")


def read_note(library: Path) -> dict[str, str]:
    """What stands beside a library, by name; nothing where there is no note, or no text in it."""
    try:
        text = note_of(library).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    return {name: value for name, _, value in (line.partition(" ") for line in text.splitlines())}


def digest_of_sources() -> str | None:
    """SHA-256 of the names and contents in ``csrc``; None where the package came without them."""
    # Not what an editor leaves between them.
    paths = [path for path in SOURCES.glob("[!.]*") if path.suffix in (".cpp", ".h", ".inc")]
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest() if paths else None


def digest_of(library: Path) -> str:
    """SHA-256 of a library, as its note has it; 2 ms."""
    with library.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_intact(library: Path) -> None:
    """Compare a library with its note: one that was cut off would end the process that loads it.

    Raises:
        OSError: It is not there, or not what was built.
    """
    recorded = read_note(library).get("library")
    while recorded and recorded != digest_of(library):
        before, recorded = recorded, read_note(library).get("library")
        if recorded == before:  # else it was built again meanwhile
            raise OSError(f"{library} is not what was built: it is damaged, or another file")


def _load() -> str | None:
    """Register the library's ops; the instruction set it chose, or None without one."""
    asked = {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)}
    wanted, named = (asked.get(name) for name in _VARIABLES)
    if wanted not in (None, *CHOICES):
        raise RuntimeError(f"BERTRON_CPU_KERNELS is {wanted!r}, expected {', '.join(CHOICES)}")
    if wanted == "eager" or _is_build():
        return None
    path = Path(named).absolute() if named else LIBRARY
    capability = torch.backends.cpu.get_cpu_capability()
    is_able = capability in ("AVX2", "AVX512")
    if not asked and not (is_able and path.exists()):
        return None
    try:
        if not is_able:
            raise OSError(f"PyTorch's CPU capability is {capability}, expected AVX2 or AVX512")
        check_intact(path)
        chosen = ctypes.CDLL(str(path)).bertron_cpu_kernels
    except (OSError, AttributeError) as error:  # for another PyTorch or machine; not our library
        if asked:
            wish = " and ".join(f"{name} is {value!r}" for name, value in asked.items())
            raise RuntimeError(
                f"{wish}, but the library does not load: {error}; build it with {_BUILD}, or unset"
                " them to let PyTorch's operators serve"
            ) from error
        _warn(f"{path} does not load, PyTorch's operators serve: {error}; build it again with")
        return None
    if path == LIBRARY and _is_of_other_sources():
        _warn(
            f"{path} serves, but was built from other sources than {SOURCES}; build it again with"
        )
    chosen.restype = ctypes.c_char_p
    name = chosen()
    if name is None:
        raise RuntimeError(
            f"this machine does not offer the instructions of {wanted or CHOICES[1]}; unset"
            " BERTRON_CPU_KERNELS, or set it to eager to run PyTorch's operators"
        )
    return bytes(name).decode()


def _is_build() -> bool:
    """Whether this process is to build the library: it must not end, or refuse, with the old."""
    return any(argument.endswith("bertron_kernels.build") for argument in sys.orig_argv[1:])


def _is_of_other_sources() -> bool:
    """Whether the sources have changed since, as after ``git pull``."""
    built_from, now = read_note(LIBRARY).get("sources"), digest_of_sources()
    return None not in (built_from, now) and built_from != now


def _warn(message: str) -> None:
    warnings.warn(f"{message} {_BUILD}", RuntimeWarning, stacklevel=3)


# Read once: the ops are registered for the life of the process.
INSTRUCTION_SET = _load()
# Whether bfloat16 is a fast type on this CPU; where not, float32 is quicker and exacter.
HAS_FAST_BF16 = (
    INSTRUCTION_SET in ("avx512_bf16", "amx")
    if INSTRUCTION_SET is not None
    else torch.cpu._is_avx512_bf16_supported()
)
