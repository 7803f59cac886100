"""The command without a GPU: what it refuses, and how."""

import os
import subprocess
import sys
from pathlib import Path

import bench_gpu
import pytest
import torch

SCRIPT = Path(bench_gpu.__file__)


def test_without_cuda_it_says_so_in_a_sentence_and_exits_with_2(tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(tmp_path)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == bench_gpu.NO_GPU
    assert done.stdout == ""
    assert done.stderr == (
        f"bench_gpu needs a CUDA device: PyTorch {torch.__version__} finds none on this machine.\n"
    )
    assert not list(tmp_path.iterdir())


def test_all_parts_run_by_default_and_stay_under_ten_minutes():
    args = bench_gpu.parse([])
    assert args.only == ["kernels", "models", "tune", "served"]
    assert args.seconds < 600
    assert args.out.name == "results"


def test_parts_can_be_chosen(tmp_path):
    args = bench_gpu.parse(["--only", "tune", "kernels", "--quick", "--out", str(tmp_path)])
    assert args.only == ["tune", "kernels"]
    assert args.quick
    assert args.out == tmp_path


def test_an_unknown_part_is_refused(capsys):
    with pytest.raises(SystemExit):
        bench_gpu.parse(["--only", "everything"])
    assert "'everything'" in capsys.readouterr().err


def test_the_checkout_is_imported_without_an_installation():
    for name in bench_gpu.SOURCES:
        assert str(bench_gpu.ROOT / name) in sys.path
