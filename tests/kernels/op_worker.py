"""Runs the ops in a process of its own: ``op_worker.py interpreter`` or a choice of the CPU's.

What runs an op is settled once a process: whether ``triton`` interprets or compiles when it is
first imported, which instruction set the CPU runs when ``bertron_kernels`` is. In pytest's process
that could be any test file; here nothing depends on the order of the tests: ``OpWorker`` sets the
variables that choose, and this checks them. Framed messages: 8 bytes of length, then what
``torch.save`` writes, so that strides travel too.
"""

import concurrent.futures
import io
import os
import sys

import bertron_kernels
import torch
from bertron_kernels.attention import _varlen_attention_kernel
from kernel_launchers import LAUNCHERS

CHOICE = sys.argv[1]
# PyTorch then fills what torch.empty returns with NaN: an unwritten output cannot pass.
torch.use_deterministic_algorithms(True)
if not torch.empty(8).isnan().all():
    raise SystemExit("torch.empty is not filled with NaN")
if CHOICE == "interpreter":
    if type(_varlen_attention_kernel).__name__ != "InterpretedFunction":
        raise SystemExit("the Triton interpreter is not active")
elif bertron_kernels.implementation("cpu") != CHOICE:
    raise SystemExit(f"the CPU runs {bertron_kernels.implementation('cpu')}, not {CHOICE}")


@torch.inference_mode()
def run(op, arguments):
    return LAUNCHERS[op](*arguments) if CHOICE == "interpreter" else _registered(op)(*arguments)


def _registered(op):
    return getattr(torch.ops.bertron, op)


def answer(message):
    """One op's result; with ``callers``, what each of so many new threads at once got, stacked."""
    op, arguments = message["op"], message["arguments"]
    torch.set_num_threads(message["num_threads"])
    try:
        if message["callers"] == 0:
            return {"out": run(op, arguments)}
        with concurrent.futures.ThreadPoolExecutor(message["callers"]) as pool:
            calls = [pool.submit(run, op, arguments) for _ in range(message["callers"])]
            return {"out": torch.stack([call.result() for call in calls])}
    except (ValueError, RuntimeError) as error:
        return {"error": type(error).__name__, "message": str(error)}


def main() -> None:
    requests = sys.stdin.buffer
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as replies:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a kernel's prints are no replies
        while header := requests.read(8):
            message = torch.load(io.BytesIO(requests.read(int.from_bytes(header))))
            buffer = io.BytesIO()
            torch.save(answer(message), buffer)
            replies.write(len(buffer.getvalue()).to_bytes(8) + buffer.getvalue())
            replies.flush()


if __name__ == "__main__":
    main()
