"""In which dtypes a model is computed on which device."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bertron_torchscript import model_file
from bertron_torchscript.bert import LINEARS
from bertron_torchscript.checkpoint import read_checkpoint
from bertron_torchscript.errors import ManifestError
from bertron_torchscript.export import build, narrow
from bertron_torchscript.model_file import set_dtypes
from tiny_checkpoints import make_checkpoint

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
READ_BY_PRODUCTS = {"qkv_bias", "intermediate_bias"}
WEIGHTS = {f"{name}_weight" for name in LINEARS}


@pytest.fixture
def model(tmp_path):
    checkpoint = read_checkpoint(str(make_checkpoint(tmp_path)))
    return build(checkpoint, checkpoint.config.num_layers)[0]


def names_of(model, dtype):
    """The last part of every parameter's name that has ``dtype``."""
    return {n.rpartition(".")[2] for n, p in model.named_parameters() if p.dtype == dtype}


@pytest.mark.parametrize("file", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("wanted", [None, "float32", "float16", "bfloat16"])
def test_on_cuda_the_dtype_is_the_wanted_one_or_the_files(model, file, wanted):
    narrow(model, getattr(torch, file))
    set_dtypes(model, CUDA, wanted)
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if (wanted or file) == "bfloat16":
        assert dtypes == {torch.float32, torch.bfloat16}
        assert names_of(model, torch.bfloat16) == WEIGHTS | READ_BY_PRODUCTS
    else:
        assert dtypes == {getattr(torch, wanted or file)}


@pytest.mark.parametrize(
    ("has_fast_bf16", "library", "narrowed"),
    [
        (True, "avx512_bf16", WEIGHTS | READ_BY_PRODUCTS),
        (True, "amx", WEIGHTS | READ_BY_PRODUCTS),
        (True, None, WEIGHTS | READ_BY_PRODUCTS),
        (False, "avx2", WEIGHTS),
        (False, None, set()),
    ],
)
def test_what_is_wanted_on_a_gpu_changes_nothing_on_a_cpu(
    model, has_fast_bf16, library, narrowed, monkeypatch
):
    monkeypatch.setattr(model_file, "HAS_FAST_BF16", has_fast_bf16)
    monkeypatch.setattr(model_file, "INSTRUCTION_SET", library)
    narrow(model, torch.bfloat16)
    set_dtypes(model, CPU, "float16")
    assert names_of(model, torch.bfloat16) == narrowed
    assert not names_of(model, torch.float16)


def test_int8_products_are_refused_on_cuda_whatever_is_wanted(model):
    for layer in model.layers:
        for name in WEIGHTS:
            weight = torch.zeros_like(getattr(layer, name), dtype=torch.int8)
            setattr(layer, name, torch.nn.Parameter(weight, requires_grad=False))
    for wanted in (None, "float16"):
        with pytest.raises(ManifestError, match="int8 products, which cuda:0 lacks"):
            set_dtypes(model, CUDA, wanted)


@pytest.mark.slow
def test_a_real_model_keeps_its_gates_in_the_dtypes_of_cuda():
    process = subprocess.run(
        [sys.executable, Path(__file__).with_name("gpu_dtypes.py"), "float16", "bfloat16"],
        env={**os.environ, "BERTRON_CPU_KERNELS": "eager"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert process.returncode == 0, process.stderr  # a cosine below its gate among them
    cosines = json.loads(process.stdout)
    assert cosines["float16"] >= 0.99999  # a GPU's default: as near as float32 has to be
    assert cosines["bfloat16"] >= 0.9999
