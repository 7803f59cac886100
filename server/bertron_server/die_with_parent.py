"""Becomes the given program, which the kernel ends with SIGTERM when its parent dies.

Run as a script by `TritonServer`: `python die_with_parent.py PARENT_PID PROGRAM [ARG ...]`. The
process id stays the same. A script, and not `preexec_fn`, which may deadlock where threads run.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h

if __name__ == "__main__":
    parent, program = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the line above
        sys.exit(1)
    os.execv(program[0], program)  # noqa: S606 - a list of arguments and no shell
