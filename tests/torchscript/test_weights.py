"""Every weight is used, or known and said; anything else is an error."""

import pytest
import torch
from bertron_torchscript.checkpoint import read_checkpoint
from bertron_torchscript.errors import ExportError
from bertron_torchscript.weights import map_weights, read_safetensors
from safetensors.torch import save_file
from tiny_checkpoints import ARCHITECTURES, make_checkpoint


@pytest.fixture
def bert(tmp_path):
    checkpoint = read_checkpoint(str(make_checkpoint(tmp_path)))
    return read_safetensors(checkpoint.weight_files), checkpoint


def mapped(tensors, checkpoint):
    return map_weights(tensors, checkpoint.config, checkpoint.weight_files[0])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_query_key_and_value_become_one_matrix(architecture, tmp_path):
    checkpoint = read_checkpoint(str(make_checkpoint(tmp_path, architecture)))
    state, _ = mapped(read_safetensors(checkpoint.weight_files), checkpoint)
    assert state["layers.1.qkv_weight"].shape == (144, 48)
    assert ("token_type_embeddings" in state) == (architecture != "distilbert")


def test_names_with_the_models_prefix_and_of_2018_are_known(bert):
    tensors, checkpoint = bert
    expected, _ = mapped(tensors, checkpoint)
    old = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in tensors.items()
    }
    state, _ = mapped(old, checkpoint)
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def test_heads_and_the_pooler_are_left_out_and_said(bert):
    tensors, checkpoint = bert
    heads = ["cls.predictions.bias", "classifier.weight", "lm_head.bias", "embeddings.position_ids"]
    _, skipped = mapped({**tensors, **{name: torch.zeros(1) for name in heads}}, checkpoint)
    assert set(heads) <= set(skipped)
    assert "pooler.dense.weight" in skipped


def test_a_missing_weight_is_named(bert):
    tensors, checkpoint = bert
    del tensors["encoder.layer.1.output.dense.bias"]
    with pytest.raises(ExportError, match=r"'encoder\.layer\.1\.output\.dense\.bias' is missing"):
        mapped(tensors, checkpoint)


def test_a_weight_that_nobody_knows_is_refused(bert):
    tensors, checkpoint = bert
    tensors["encoder.layer.2.output.dense.bias"] = torch.zeros(48)
    with pytest.raises(ExportError, match=r"1 weights that a bert encoder of 2 layers"):
        mapped(tensors, checkpoint)


def test_half_precision_checkpoints_are_widened(bert):
    tensors, checkpoint = bert
    state, _ = mapped({name: tensor.half() for name, tensor in tensors.items()}, checkpoint)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_several_files_are_read_as_one(bert, tmp_path):
    tensors, _ = bert
    names = sorted(tensors)
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    save_file({name: tensors[name] for name in names[::2]}, paths[0])
    save_file({name: tensors[name] for name in names[1::2]}, paths[1])
    assert sorted(read_safetensors(paths)) == names


def test_a_damaged_file_is_named(bert):
    _, checkpoint = bert
    path = checkpoint.weight_files[0]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ExportError, match=r"model\.safetensors is not a readable safetensors"):
        read_safetensors([path])
