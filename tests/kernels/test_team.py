"""The threads that share an op: ``csrc/team.cpp`` under sanitizers, without PyTorch."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from bertron_kernels.build import SOURCES

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")

PROGRAM = Path(__file__).with_name("team_program.cpp")
FLAGS = ("-std=c++20", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread")


@pytest.fixture(scope="module", params=["thread", "address,undefined"])
def program(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("team") / "program"
    command = ["g++", *FLAGS, f"-fsanitize={request.param}", f"-I{SOURCES}"]
    command += [str(SOURCES / "team.cpp"), str(PROGRAM), "-o", str(path)]
    subprocess.run(command, check=True, timeout=120)
    return path


# many: ops of all sizes; callers: several at once; throwing: what a part throws arrives, after the
# last part; placed: on which CPUs helpers may run; forked: a child, which has no helpers, computes.
@pytest.mark.parametrize("mode", ["many", "callers", "throwing", "placed", "forked"])
def test_everything_is_computed_once(program, mode):
    done = subprocess.run(
        [program, mode],
        env={**os.environ, "TSAN_OPTIONS": "die_after_fork=0"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("this kernel lays out memory as this ThreadSanitizer cannot take it")
    assert done.returncode == 0, done.stderr
