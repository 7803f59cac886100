"""Compiles kernel variants for GPUs that are not there, and says what each takes of the chip.

Run as a program, with TRITON_INTERPRET unset: ``compile_gate.py CAPABILITIES NAME...``, the
capabilities as 80,90 for sm_80 and sm_90, the names as in ``bertron_kernels.variants``; no name
takes all. Prints a table, or with ``--json`` one JSON line a variant.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
import triton
from bertron_kernels.launch import Launch
from bertron_kernels.variants import served_variants
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


# The matrix units' instructions as the compiler writes them, one machine instruction each: mma.sync
# (HMMA) from sm_80 on, a warp at a time; wgmma (HGMMA) on sm_90, four warps at a time; tcgen05.mma
# (UTCHMMA) on sm_100, from a memory of its own. Disassembling would take longer than compiling.
MATRIX_INSTRUCTIONS = re.compile(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b")
WAIT = "griddepcontrol.wait"
# What touches memory that other kernels use; a program's shared memory and parameters are its own,
# and a prefetch brings nothing into it.
MEMORY_ACCESSES = re.compile(
    r"\b(?:(?:ld|st|atom|red|multimem)\.(?!shared|param|\S*\.shared|local)|cp\.)\S+"
)
COLUMNS = (
    *("registers", "stack_bytes", "local_bytes", "shared_bytes", "matrix_instructions"),
    "before_wait",
)


def compile_for(launch: Launch, capability: int) -> dict[str, object]:
    """What the compiled launch takes.

    Returns:
        Registers a thread, bytes of stack and of local memory a thread, where spills go, bytes of
        shared memory a program, the kind of matrix instruction, empty where there is none, and
        the first access to memory before a program waits for the kernel ahead, "nothing" where
        there is none and empty where no program waits.
    """
    constants = {name: None for name, value in launch.arguments.items() if value is None}
    # The launchers' tensors come from PyTorch's allocator, aligned to far more than 16 bytes.
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, value in enumerate(launch.arguments.values())
        if isinstance(value, torch.Tensor)
    }
    source = ASTSource(
        fn=launch.kernel,
        signature=launch.signature(),
        constexprs=constants | dict(launch.constants),
        attrs=aligned,
    )
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options=launch.options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        Path(cubin.name).write_bytes(compiled.asm["cubin"])
        dump = subprocess.run(
            [CUOBJDUMP, "--dump-resource-usage", cubin.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    usage = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", dump)}
    return {
        "registers": usage["REG"],
        "stack_bytes": usage["STACK"],
        "local_bytes": usage["LOCAL"],
        "shared_bytes": compiled.metadata.shared,
        "matrix_instructions": "+".join(
            sorted(set(MATRIX_INSTRUCTIONS.findall(compiled.asm["ptx"])))
        ),
        "before_wait": before_wait(compiled.asm["ptx"]),
    }


def before_wait(ptx: str) -> str:
    """The first access to memory that stands before the wait, "nothing", or "" without a wait."""
    before, wait, _ = ptx.partition(WAIT)
    if not wait:
        return ""
    first = MEMORY_ACCESSES.search(before.partition(".reqntid")[2])
    return first.group() if first else "nothing"


def main() -> None:
    arguments = [argument for argument in sys.argv[1:] if argument != "--json"]
    as_json = len(arguments) < len(sys.argv) - 1
    capabilities, names = [int(c) for c in arguments[0].split(",")], arguments[1:]
    if not as_json:
        sys.stdout.write(_row("variant", "sm", COLUMNS))
    for capability in capabilities:
        variants = dict(served_variants(capability))
        for name in names or variants:
            usage = compile_for(variants[name], capability)
            if as_json:
                sys.stdout.write(
                    json.dumps({"name": name, "capability": capability} | usage) + "\n"
                )
            else:
                sys.stdout.write(_row(name, capability, [usage[column] for column in COLUMNS]))
            sys.stdout.flush()


def _row(name: str, capability: object, values: Sequence[object]) -> str:
    return f"{name:56}{capability:>5}" + "".join(f"{value!s:>21}" for value in values) + "\n"


if __name__ == "__main__":
    main()
