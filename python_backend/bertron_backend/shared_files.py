"""Files that the server's processes share: of this user alone, and gone with their last user.

A process that uses such a file holds a shared lock on it, which the kernel takes back when the
process ends, however it ends. What nobody holds is left over from a killed one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path


def make_private(directory: Path) -> None:
    """Make ``directory``, or see that it is this user's alone.

    Raises:
        PermissionError: It is another user's, or others may enter it.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PermissionError("it is not a directory of this user alone (mode 700)")


def open_in_use(path: Path, flags: int = os.O_RDONLY) -> int | None:
    """Open a file that may come and go, with a shared lock.

    Returns:
        Its descriptor, or None where there is no such file (any more).
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    with closed_unless_kept(descriptor) as keep, contextlib.suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # refused: it is being removed
        if os.fstat(descriptor).st_nlink > 0:
            keep()
            return descriptor
    return None


def remove_unused(directory: Path) -> None:
    """Remove what no process has in use."""
    for path in directory.iterdir():
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:  # another one was quicker
            continue
        with closed_unless_kept(descriptor), contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another one may have removed it meanwhile, and a third made a new one of that name.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.lstat()):
                    path.unlink()


@contextlib.contextmanager
def closed_unless_kept(descriptor: int) -> Iterator[Callable[[], object]]:
    """Close ``descriptor`` at the end of the block, unless what this yields was called."""
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, descriptor)
        yield stack.pop_all
