"""Becomes the given program, which the kernel ends with SIGTERM when its parent dies.

Run as a script, by what `tied` returns: `python die_with_parent.py PARENT_PID PROGRAM [ARG ...]`.
The process id stays the same. Not `preexec_fn`, which may deadlock where threads run.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def tied(command: list[str]) -> list[str]:
    """Return the command line that runs ``command`` no longer than the thread that starts it."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


if __name__ == "__main__":
    parent, program = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the line above
        sys.exit(1)
    os.execv(program[0], program)  # noqa: S606 - a list of arguments and no shell
