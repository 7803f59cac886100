"""How many files and sockets a process may have open.

A login shell's 1024 are some 960 connections. Beyond them Triton server takes no new one, of any
protocol, and writes an error about it 200,000 times a second.
"""

import contextlib
import resource

MOST = 65_536  # some libraries look at each number that is allowed


def allow_many(pid: int) -> None:
    """Raise the limit of a process, and of those that it starts, as far as it may go."""
    with contextlib.suppress(OSError):  # it has just ended
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (wanted, hard))
