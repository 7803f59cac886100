"""Compiles every served variant for GPUs that are not there, by ``compile_gate.py``."""

import json
import os
import runpy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from bertron_kernels.overlap import FIRST_WITH_OVERLAP
from bertron_kernels.variants import served_variants

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

GATE = Path(__file__).with_name("compile_gate.py")
# Shared memory that one program may have, from the CUDA programming guide's table of compute
# capabilities: 163 kB on the A100, 227 kB on the H100, H200 and B200.
SHARED_LIMITS = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
NAMES = {sm: [name for name, _ in served_variants(sm)] for sm in SHARED_LIMITS}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton_cache"))

    def compile_all(capability):
        gate = subprocess.run(
            [
                sys.executable,
                GATE,
                "--json",
                str(capability),
            ],
            env=environment,
            capture_output=True,
            text=True,
            timeout=1000,
            check=False,
        )
        assert gate.returncode == 0, gate.stderr
        return [json.loads(line) for line in gate.stdout.splitlines()]

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(SHARED_LIMITS, pool.map(compile_all, SHARED_LIMITS), strict=True))


@pytest.mark.parametrize("capability", SHARED_LIMITS)
def test_kernels_compile_without_spills(compiled, capability):
    assert [result["name"] for result in compiled[capability]] == NAMES[capability]
    for result in compiled[capability]:
        assert result["capability"] == capability
        assert result["stack_bytes"] == 0, result
        assert result["local_bytes"] == 0, result
        assert result["shared_bytes"] <= SHARED_LIMITS[capability], result


@pytest.mark.parametrize("capability", SHARED_LIMITS)
def test_products_run_on_the_matrix_units(compiled, capability):
    launches = dict(served_variants(capability))
    seen = 0
    for result in compiled[capability]:
        launch = launches[result["name"]]
        rows = launch.constants.get("BLOCK_M", 0)  # only kernels with a product have it
        if not rows or "float32" in result["name"]:  # fp32 is exact, on the multiply-add units
            assert result["matrix_instructions"] == "", result
            continue
        # Four warps share one product of 64 rows: fewer rows or warps take the older instruction.
        large = rows >= 64 and launch.num_warps >= 4
        newest = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}[capability]
        assert result["matrix_instructions"] == (newest if large else "mma.sync"), result
        seen += 1
    assert seen > 20


@pytest.mark.parametrize("capability", SHARED_LIMITS)
def test_what_overlaps_waits_before_it_touches_memory(compiled, capability):
    launches = dict(served_variants(capability))
    for result in compiled[capability]:
        expected = "nothing" if launches[result["name"]].overlaps else ""
        assert result["before_wait"] == expected, result
    can_overlap = capability >= FIRST_WITH_OVERLAP
    assert any(launch.overlaps for launch in launches.values()) == can_overlap


@pytest.mark.parametrize(
    ("ptx", "found"),
    [
        (".reqntid 32\nld.param.b64 a;\nprefetch.global.L2 [a];\nW;\nld.global.b32 x;", "nothing"),
        (".reqntid 32\n@%p1 ld.global.b32 x;\nW;\nst.global.b32 x;", "ld.global.b32"),
        (".reqntid 32\ncp.async.cg.shared.global [a];\nW;", "cp.async.cg.shared.global"),
        (".reqntid 32\nred.global.add.f32 [a];\nW;", "red.global.add.f32"),
        (".reqntid 32\nld.global.b32 x;", ""),
    ],
)
def test_an_access_before_the_wait_is_found(ptx, found):
    before_wait = runpy.run_path(str(GATE))["before_wait"]
    assert before_wait(ptx.replace("W;", "griddepcontrol.wait;")) == found


def test_the_table_is_for_people():
    gate = subprocess.run(
        [sys.executable, GATE, "90", NAMES[90][0]],
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    header, row = gate.stdout.splitlines()
    assert header.split()[:3] == ["variant", "sm", "registers"]
    assert row.split()[:2] == [NAMES[90][0], "90"]
