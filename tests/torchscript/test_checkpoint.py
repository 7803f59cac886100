"""Reading a Hugging Face directory: what is taken, and what is refused with which words."""

import json
from pathlib import Path

import pytest
from bertron_torchscript.checkpoint import encoder_config, read_checkpoint
from bertron_torchscript.errors import ExportError
from tiny_checkpoints import make_checkpoint


def edit_json(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.fixture
def directory(tmp_path):
    return make_checkpoint(tmp_path / "tiny")


def test_a_sentence_transformers_directory_needs_nothing_else(directory):
    checkpoint = read_checkpoint(str(directory))
    assert (checkpoint.pooling.mode, checkpoint.pooling.normalize) == ("mean", True)
    assert checkpoint.max_tokens_per_text == 66
    assert checkpoint.config.head_dim == 16


@pytest.mark.parametrize("mode", ["mean", "max", "cls", "last"])
def test_each_pooling_of_modules_json_is_understood(mode, tmp_path):
    assert read_checkpoint(str(make_checkpoint(tmp_path, pooling=mode))).pooling.mode == mode


def test_the_newer_spelling_of_the_pooling_is_understood(directory):
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "cls"}))
    assert read_checkpoint(str(directory)).pooling.mode == "cls"


def test_pooling_is_never_guessed(tmp_path):
    directory = make_checkpoint(tmp_path, pooling=None)
    with pytest.raises(ExportError, match=r"modules\.json is missing.*--pooling"):
        read_checkpoint(str(directory))
    pooling = read_checkpoint(str(directory), pooling="cls").pooling
    assert (pooling.mode, pooling.normalize) == ("cls", False)


def test_the_user_overrides_modules_json(directory):
    pooling = read_checkpoint(str(directory), pooling="cls", normalize=False).pooling
    assert (pooling.mode, pooling.normalize) == ("cls", False)


def test_a_module_that_changes_the_vector_is_refused(directory):
    modules = json.loads((directory / "modules.json").read_text())
    modules.append({"idx": 3, "name": "3", "path": "3_Dense", "type": "s_t.models.Dense"})
    (directory / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ExportError, match=r"modules\.json: module type 's_t\.models\.Dense'"):
        read_checkpoint(str(directory))


def test_a_weighted_pooling_is_refused(directory):
    config = {"pooling_mode_weightedmean_tokens": True}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExportError, match=r"weightedmean.*not supported"):
        read_checkpoint(str(directory))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "mpnet"}, "config.json: model_type 'mpnet' is not supported"),
        ({"hidden_act": "gelu_new"}, "activation 'gelu_new' is not supported"),
        ({"position_embedding_type": "relative_key"}, "'relative_key' is not supported"),
        ({"is_decoder": True}, "is a decoder"),
        ({"num_attention_heads": 5}, "hidden size 48 is not a multiple .* 5"),
    ],
)
def test_what_we_cannot_compute_is_refused(directory, fields, words):
    edit_json(directory / "config.json", **fields)
    with pytest.raises(ExportError, match=words):
        read_checkpoint(str(directory))


def test_roberta_positions_start_after_the_padding_index(tmp_path):
    config = read_checkpoint(str(make_checkpoint(tmp_path, "roberta"))).config
    assert (config.position_offset, config.max_positions) == (2, 64)


def test_the_longest_text_is_the_smallest_of_all_that_limit_it(directory):
    (directory / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 40}))
    assert read_checkpoint(str(directory)).max_tokens_per_text == 40
    (directory / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 30}))
    assert read_checkpoint(str(directory)).max_tokens_per_text == 30
    assert read_checkpoint(str(directory), max_tokens=50).max_tokens_per_text == 50
    with pytest.raises(ExportError, match=r"--max-tokens 67 is outside 3\.\.66"):
        read_checkpoint(str(directory), max_tokens=67)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(directory, name):
    (directory / name).unlink()
    with pytest.raises(ExportError, match=rf"{name} is missing"):
        read_checkpoint(str(directory))


def test_a_pickle_is_never_read(directory):
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(ExportError, match=r"pytorch_model\.bin is a pickle.*never read"):
        read_checkpoint(str(directory))


def test_broken_json_is_named(directory):
    (directory / "config.json").write_text("{")
    with pytest.raises(ExportError, match=r"config\.json is not readable JSON"):
        read_checkpoint(str(directory))
    (directory / "config.json").write_text("[]")
    with pytest.raises(ExportError, match=r"config\.json: expected a JSON dict, got list"):
        read_checkpoint(str(directory))


def test_a_directory_that_does_not_exist_is_not_looked_up_on_the_hub():
    with pytest.raises(ExportError, match=r"\./nowhere: no such directory"):
        read_checkpoint("./nowhere")


def test_a_missing_size_is_named():
    with pytest.raises(ExportError, match="hidden_size is missing"):
        encoder_config({"model_type": "bert", "vocab_size": 3}, Path("config.json"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": "48"}, "hidden_size is '48', expected a whole number of at least 1"),
        ({"hidden_size": 48.0}, r"hidden_size is 48\.0, expected a whole number of at least 1"),
        ({"num_attention_heads": 0}, "num_heads is 0, expected a whole number of at least 1"),
        ({"num_hidden_layers": None}, "num_layers is None, expected a whole number of at least 0"),
        ({"vocab_size": True}, "vocab_size is True, expected a whole number of at least 1"),
        ({"type_vocab_size": -1}, "type_vocab_size is -1, expected a whole number of at least 0"),
        ({"layer_norm_eps": "1e-12"}, "layer_norm_eps is '1e-12', expected a number above 0"),
    ],
)
def test_a_size_that_no_model_has_is_named(directory, fields, message):
    edit_json(directory / "config.json", **fields)
    with pytest.raises(ExportError, match=rf"config\.json: {message}"):
        read_checkpoint(str(directory))
