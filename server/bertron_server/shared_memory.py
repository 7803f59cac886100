"""The shared memory of Triton server's Python stubs: named by us, and removed when it is left over.

A stub that is killed leaks its region, and /dev/shm never gives it back. Each start gets a prefix
of its own, so that a stop removes exactly what it made. The prefix names the PID namespace too:
where two containers share /dev/shm, neither sees the other's processes nor touches its regions.
"""

import contextlib
import os
import secrets
import time
from pathlib import Path

DIRECTORY = Path("/dev/shm")  # noqa: S108 - where Linux keeps POSIX shared memory
# A region younger than this may be between its creation and its first mapping.
SETTLED_AFTER_S = 60.0


def new_prefix() -> str:
    """Return how the region names of one start begin."""
    return f"{_namespace_prefix()}{secrets.token_hex(4)}_"


def _namespace_prefix() -> str:
    return f"bertron_{Path('/proc/self/ns/pid').stat().st_ino}_"


def remove_regions(prefix: str) -> None:
    """Remove the regions of a server whose processes are all gone."""
    for region in DIRECTORY.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            region.unlink()


def remove_stale_regions() -> list[str]:
    """Remove the regions that dead servers left; return their names.

    Only what is ours, of this user and this PID namespace, settled, and mapped by no process.
    """
    oldest = time.time() - SETTLED_AFTER_S
    candidates = [
        region
        for region in DIRECTORY.glob(f"{_namespace_prefix()}*")
        if _is_settled(region, oldest)
    ]
    if not candidates:
        return []
    mapped = _mapped_names()
    if mapped is None:
        return []
    removed = []
    for region in candidates:
        if region.name not in mapped:
            with contextlib.suppress(OSError):
                region.unlink()
                removed.append(region.name)
    return removed


def _is_settled(region: Path, oldest: float) -> bool:
    try:
        status = region.stat()
    except OSError:
        return False
    return status.st_uid == os.getuid() and max(status.st_ctime, status.st_mtime) < oldest


def _mapped_names() -> set[str] | None:
    """The names of all mapped regions, or None where a server or a stub hides its maps."""
    names: set[str] = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            maps = (process / "maps").read_text(encoding="utf-8", errors="replace")
        except PermissionError:
            if _may_be_triton(process):
                return None
            continue  # in a container process 1 hides them even from root
        except OSError:
            continue  # it has ended meanwhile
        # "7f.. rw-s 00000000 00:1a 7  /dev/shm/name", with " (deleted)" behind what was unlinked
        names.update(
            line.partition(f"{DIRECTORY}/")[2].split(" ")[0]
            for line in maps.splitlines()
            if f"{DIRECTORY}/" in line
        )
    return names


def _may_be_triton(process: Path) -> bool:
    try:
        name = (process / "comm").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return name.startswith("triton")  # tritonserver, triton_python_backend_stub
