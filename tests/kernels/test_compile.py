"""Compiles the kernels for GPUs that are not there, by ``compile_gate.py`` in a clean process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bertron_kernels.variants import served_variants

# Each kernel once, in the dtypes and widths that press hardest on registers.
# `compile_gate.py 80,90,100` without names compiles every variant, in 2 minutes.
NAMES = [
    "varlen_attention-32-32-torch.float16",
    "varlen_attention-32-512-torch.bfloat16",
    "varlen_attention-64-512-torch.float16",
    "varlen_attention-64-512-torch.float32",
    "varlen_attention-128-512-torch.float16",
    "add_layer_norm-768-torch.float16",
    "add_layer_norm-1024-torch.float32",
    "bias_gelu-768-torch.bfloat16",
    "embedding_layer_norm-1024-torch.float32",
    "pool-mean-1024-torch.float16",
    "pool-mean-max-1024-torch.float32",
]

# Shared memory that one program may have, from the CUDA programming guide's table of compute
# capabilities: 163 kB on the A100, 227 kB on the H100, H200 and B200.
SHARED_LIMITS = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton_cache"))
    capabilities = ",".join(str(capability) for capability in SHARED_LIMITS)
    gate = subprocess.run(
        [sys.executable, Path(__file__).with_name("compile_gate.py"), capabilities, *NAMES],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert gate.returncode == 0, gate.stderr
    return [json.loads(line) for line in gate.stdout.splitlines()]


@pytest.mark.parametrize("capability", SHARED_LIMITS)
def test_kernels_compile_without_spills(compiled, capability):
    results = [result for result in compiled if result["capability"] == capability]
    assert [result["name"] for result in results] == NAMES
    for result in results:
        assert result["stack_bytes"] == 0, result
        assert result["local_bytes"] == 0, result
        assert result["spill_instructions"] == 0, result
        assert result["shared_bytes"] <= SHARED_LIMITS[capability], result


def test_every_kernel_is_among_the_compiled():
    kernels = {launch.kernel for _, launch in served_variants()}
    gated = {launch.kernel for name, launch in served_variants() if name in NAMES}
    assert gated == kernels
