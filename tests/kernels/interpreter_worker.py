"""Runs the kernels' launchers under the Triton interpreter, in a process of its own.

Whether ``triton`` interprets or compiles is settled when it is first imported. In pytest's process
that could be any test file, and the compile gate needs the compiler; so the interpreter lives here
and nothing depends on the order of the tests. Framed messages: 8 bytes of length, then what
``torch.save`` writes, so that strides travel too.
"""

import io
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch
from bertron_kernels.attention import _varlen_attention_kernel
from bertron_kernels.ops import KERNELS

# PyTorch then fills what torch.empty returns with NaN: an unwritten output cannot pass.
torch.use_deterministic_algorithms(True)
if not torch.empty(8).isnan().all():
    raise SystemExit("torch.empty is not filled with NaN")
if type(_varlen_attention_kernel).__name__ != "InterpretedFunction":
    raise SystemExit("the Triton interpreter is not active")


def main() -> None:
    requests = sys.stdin.buffer
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as replies:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a kernel's prints are no replies
        while header := requests.read(8):
            message = torch.load(io.BytesIO(requests.read(int.from_bytes(header))))
            try:
                reply = {"out": KERNELS[message["op"]](*message["arguments"])}
            except ValueError as error:
                reply = {"error": str(error)}
            buffer = io.BytesIO()
            torch.save(reply, buffer)
            replies.write(len(buffer.getvalue()).to_bytes(8) + buffer.getvalue())
            replies.flush()


if __name__ == "__main__":
    main()
