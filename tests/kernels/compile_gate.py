"""Compiles kernel variants for GPUs that are not there; prints one JSON line for each.

Run as a program, with TRITON_INTERPRET unset: ``compile_gate.py CAPABILITIES NAME...``, the
capabilities as 80,90 for sm_80 and sm_90, the names as in ``bertron_kernels.variants``; no name
takes all.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from bertron_kernels.launch import Launch
from bertron_kernels.variants import served_variants
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def compile_for(launch: Launch, capability: int) -> dict[str, int]:
    """Registers, stack bytes, local bytes (spills) and shared memory of the compiled launch."""
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
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        Path(cubin.name).write_bytes(compiled.asm["cubin"])
        dump = subprocess.run(
            [CUOBJDUMP, "--dump-resource-usage", cubin.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        sass = subprocess.run(
            [CUOBJDUMP, "--dump-sass", cubin.name], capture_output=True, text=True, check=True
        ).stdout
    usage = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", dump)}
    return {
        "registers": usage["REG"],
        "stack_bytes": usage["STACK"],
        "local_bytes": usage["LOCAL"],
        "spill_instructions": len(re.findall(r"\b(?:STL|LDL)\b", sass)),
        "shared_bytes": compiled.metadata.shared,
    }


def main() -> None:
    capabilities, names = [int(c) for c in sys.argv[1].split(",")], sys.argv[2:]
    variants = dict(served_variants())
    for capability in capabilities:
        for name in names or variants:
            usage = compile_for(variants[name], capability)
            result = {"name": name, "capability": capability} | usage
            sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
