import importlib
import io
import os
import subprocess
import sys

import bertron_kernels
import bertron_kernels.ops
import pytest
import torch
from bertron_kernels import SCHEMAS, implementation
from bertron_kernels.native import CHOICES
from torch import Tensor

# Every op as a model calls it. Saved files name these signatures: a change breaks them.
FIXED_SCHEMAS = {
    "pack_weight": (
        "bertron::pack_weight(Tensor weight, Tensor? weight_scale, Tensor? input_scale) -> Tensor"
    ),
    "linear": (
        "bertron::linear(Tensor x, Tensor weight, Tensor? weight_scale, Tensor? input_scale,"
        " Tensor bias) -> Tensor"
    ),
    "linear_gelu": (
        "bertron::linear_gelu(Tensor x, Tensor weight, Tensor? weight_scale, Tensor? input_scale,"
        " Tensor bias) -> Tensor"
    ),
    "linear_add_layer_norm": (
        "bertron::linear_add_layer_norm(Tensor x, Tensor weight, Tensor? weight_scale,"
        " Tensor? input_scale, Tensor bias, Tensor residual, Tensor norm_weight, Tensor norm_bias,"
        " float eps) -> Tensor"
    ),
    "varlen_attention": (
        "bertron::varlen_attention(Tensor qkv, Tensor cu_seqlens, int max_seqlen,"
        " float softmax_scale) -> Tensor"
    ),
    "add_layer_norm": (
        "bertron::add_layer_norm(Tensor x, Tensor? residual, Tensor? bias, Tensor weight,"
        " Tensor norm_bias, float eps) -> Tensor"
    ),
    "bias_gelu": "bertron::bias_gelu(Tensor x, Tensor? bias) -> Tensor",
    "embedding_layer_norm": (
        "bertron::embedding_layer_norm(Tensor input_ids, Tensor position_ids,"
        " Tensor? token_type_ids, Tensor word_embeddings, Tensor position_embeddings,"
        " Tensor? token_type_embeddings, Tensor weight, Tensor bias, float eps) -> Tensor"
    ),
    "pool": (
        "bertron::pool(Tensor hidden_states, Tensor cu_seqlens, str mode, bool normalize) -> Tensor"
    ),
}


def test_the_registered_schemas_are_the_fixed_ones():
    registered = {name: str(getattr(torch.ops.bertron, name).default._schema) for name in SCHEMAS}
    assert registered == FIXED_SCHEMAS


def encode(
    ids: Tensor,
    cu_seqlens: Tensor,
    words: Tensor,
    positions: Tensor,
    square: Tensor,
    row: Tensor,
    mode: str,
) -> Tensor:
    """A model in small: every op once."""
    x = torch.ops.bertron.embedding_layer_norm(
        ids, ids, None, words, positions, None, row, row, 1e-12
    )
    qkv = torch.cat([x, x, x], 1).view(x.size(0), 3, 2, 16)
    context = torch.ops.bertron.varlen_attention(qkv, cu_seqlens, 4, 0.25)
    x = torch.ops.bertron.add_layer_norm(context.view(x.size(0), -1), x, row, row, row, 1e-12)
    x = torch.ops.bertron.linear(x, square, None, None, row)
    x = torch.ops.bertron.linear_gelu(x, square, None, None, row)
    x = torch.ops.bertron.linear_add_layer_norm(x, square, None, None, row, x, row, row, 1e-12)
    x = torch.ops.bertron.bias_gelu(x, None)
    pooled: Tensor = torch.ops.bertron.pool(x, cu_seqlens, mode, True)
    return pooled


@pytest.fixture
def encode_arguments(randn, packed):
    ids = torch.tensor([3, 1, 2, 0, 5, 4, 3], dtype=torch.int32)
    square = torch.ops.bertron.pack_weight(randn(32, 32), None, None)
    return (ids, packed([4, 3]), randn(6, 32), randn(6, 32), square, randn(32), "mean-max")


def test_the_ops_survive_script_save_and_load(encode_arguments):
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(encode), buffer)
    buffer.seek(0)
    loaded = torch.jit.load(buffer)
    with torch.inference_mode():
        out = loaded(*encode_arguments)
    assert out.shape == (2, 64)
    assert torch.equal(out, encode(*encode_arguments))


def test_an_error_inside_a_script_keeps_its_message(encode_arguments):
    scripted = torch.jit.script(encode)
    with pytest.raises(Exception, match="mode is 'sum', expected one of cls"):
        scripted(*encode_arguments[:-1], "sum")


def test_fake_tensors_have_the_shapes_and_dtypes_of_real_ones(encode_arguments):
    from torch._subclasses.fake_tensor import FakeTensorMode

    real = encode(*encode_arguments)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, Tensor) else a for a in encode_arguments]
        fake = encode(*fakes)
    assert fake.shape == real.shape
    assert fake.dtype == real.dtype


def test_importing_again_changes_nothing(encode_arguments):
    before, runs = encode(*encode_arguments), implementation("cpu")
    importlib.reload(bertron_kernels.ops)
    importlib.reload(bertron_kernels)
    assert torch.equal(encode(*encode_arguments), before)
    assert bertron_kernels.implementation("cpu") == runs


def test_the_implementation_is_named():
    assert implementation("cpu") in CHOICES
    assert implementation("cuda") == "triton"
    with pytest.raises(ValueError, match="device type is 'tpu', expected cpu or cuda"):
        implementation("tpu")


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None  # importing it then raises ImportError
import torch, bertron_kernels, bertron_kernels.variants
assert bertron_kernels.implementation("cuda") == "eager"
out = torch.ops.bertron.bias_gelu(torch.zeros(2, 3), None)
assert torch.equal(out, torch.zeros(2, 3))
"""


def test_the_package_serves_without_triton():
    # In a process of its own: in this one triton may be imported already.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", WITHOUT_TRITON], env=environment, check=True, timeout=120)


def test_the_public_names_are_sorted_and_exist():
    assert bertron_kernels.__all__ == sorted(bertron_kernels.__all__)
    assert all(hasattr(bertron_kernels, name) for name in bertron_kernels.__all__)
