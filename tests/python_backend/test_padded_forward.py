"""What a CUDA graph computes: the kernels over padded batches, under the Triton interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_checkpoints import make_checkpoint


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "poolings"), [("bert", ["mean", "cls", "last"]), ("roberta", ["mean"])]
)
def test_padding_changes_no_embedding(architecture, poolings, tmp_path):
    directory = make_checkpoint(tmp_path, architecture)
    script = Path(__file__).with_name("padded_forward.py")
    process = subprocess.run(
        [sys.executable, script, directory, *poolings],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert process.returncode == 0, process.stderr
    differences = json.loads(process.stdout)
    assert list(differences) == poolings
    for by_bucket in differences.values():
        assert list(by_bucket) == ["16", "32", "64"]
        assert max(by_bucket.values()) < 1e-6  # of a vector of length 1, in float32
