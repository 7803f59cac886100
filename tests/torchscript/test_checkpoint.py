"""Reading a Hugging Face directory: what is taken, and what is refused with which words."""

import json
from pathlib import Path

import pytest
import torch
from bertron_torchscript.checkpoint import encoder_config, read_checkpoint
from bertron_torchscript.errors import ExportError
from bertron_torchscript.weights import read_safetensors
from safetensors.torch import load_file, save_file
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


def test_pooling_is_never_guessed(tmp_path):
    directory = make_checkpoint(tmp_path, pooling=None)
    with pytest.raises(ExportError, match=r"modules\.json is missing.*--pooling"):
        read_checkpoint(str(directory))
    pooling = read_checkpoint(str(directory), pooling="cls").pooling
    assert (pooling.mode, pooling.normalize) == ("cls", False)


def test_the_user_overrides_modules_json(directory):
    pooling = read_checkpoint(str(directory), pooling="cls", normalize=False).pooling
    assert (pooling.mode, pooling.normalize) == ("cls", False)


def test_a_choice_that_is_no_pooling_is_refused(directory):
    with pytest.raises(ExportError, match="pooling 'sum' is not known; choose one of mean, max"):
        read_checkpoint(str(directory), pooling="sum")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "mpnet"}, "config.json: model_type 'mpnet' is not supported"),
        ({"hidden_act": "gelu_new"}, "activation 'gelu_new' is not supported"),
        ({"position_embedding_type": "relative_key"}, "'relative_key' is not supported"),
        ({"is_decoder": True}, "is a decoder"),
        ({"quantization_config": {"load_in_8bit": True}}, "quantization_config: quantised weights"),
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


def longest(directory: Path, **options: int) -> int:
    return read_checkpoint(str(directory), **options).max_tokens_per_text


def test_the_longest_text_is_sentence_transformers_before_the_tokenizers(directory):
    assert longest(directory) == 66
    (directory / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 40}))
    assert longest(directory) == 40
    path = directory / "sentence_distilbert_config.json"
    for declared, taken in ((30, 30), (50, 50), (512, 66), (None, 40)):
        path.write_text(json.dumps({"max_seq_length": declared}))
        assert longest(directory) == taken
    assert longest(directory, max_tokens=50) == 50
    with pytest.raises(ExportError, match=r"--max-tokens 67 is outside 3\.\.66"):
        longest(directory, max_tokens=67)


@pytest.mark.parametrize(
    ("written", "taken"),
    [
        ("3", 3),
        ("41", 41),
        ('"42"', 42),
        ("43.0", 43),
        ("1e30", 66),
        (str(int(1e30)), 66),
        ("Infinity", 66),
        ('"' + "9" * 500 + '"', 66),
        ("null", 66),
    ],
)
def test_a_tokenizers_longest_text_may_be_written_in_many_ways(directory, written, taken):
    (directory / "tokenizer_config.json").write_text(f'{{"model_max_length": {written}}}')
    assert longest(directory) == taken


@pytest.mark.parametrize(
    ("name", "key", "written"),
    [
        ("tokenizer_config.json", "model_max_length", written)
        for written in ("0", "2", "-1", "true", "NaN", "-Infinity", "9.5", '"long"', '"-5"', "[9]")
    ]
    + [
        ("sentence_bert_config.json", "max_seq_length", written)
        for written in (
            "0",
            "2",
            "-1",
            "true",
            "128.0",
            '"128"',
            "1e30",
            "{}",
            '"' + "9" * 99 + '"',
        )
    ],
)
def test_a_longest_text_that_is_none_is_named(directory, name, key, written):
    (directory / name).write_text(f'{{"{key}": {written}}}')
    with pytest.raises(
        ExportError,
        match=rf"{name}: {key} is .*, expected a whole number of at least 3; --max-tokens overr",
    ) as refused:
        longest(directory)
    assert len(str(refused.value)) < 300
    assert longest(directory, max_tokens=9) == 9


def test_an_adapter_is_not_taken_for_its_model(directory):
    (directory / "adapter_config.json").write_text("{}")
    with pytest.raises(
        ExportError, match=r"adapter_config\.json: the weights are a PEFT adapter's"
    ):
        read_checkpoint(str(directory))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(directory, name):
    (directory / name).unlink()
    with pytest.raises(ExportError, match=rf"{name} is missing"):
        read_checkpoint(str(directory))


def test_a_pickle_is_never_read(directory):
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(ExportError, match=r"pytorch_model\.bin is a pickle.*never read"):
        read_checkpoint(str(directory))


def in_two_files(directory):
    """The checkpoint's weights as a large one has them; its tensors."""
    whole = directory / "model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    weight_map = {}
    for part in (0, 1):
        name = f"model-0000{part + 1}-of-00002.safetensors"
        own = {key: tensors[key] for key in sorted(tensors)[part::2]}
        save_file(own, directory / name, {"format": "pt"})
        weight_map |= dict.fromkeys(own, name)
    write_index(directory, weight_map)
    return tensors


def write_index(directory, weight_map):
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}), "utf-8")


def test_weights_in_several_files_are_all_read(directory):
    tensors = in_two_files(directory)
    read = read_safetensors(read_checkpoint(str(directory)).weight_files)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[key], tensors[key]) for key in tensors)


def test_a_part_that_is_missing_is_named(directory):
    in_two_files(directory)
    (directory / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ExportError, match=r"index\.json: names \['model-00002-of-00002"):
        read_checkpoint(str(directory))


@pytest.mark.parametrize("weight_map", [[], 7, {"a": 7}, {"a": ["b"]}])
def test_an_index_that_is_none_is_named(directory, weight_map):
    in_two_files(directory)
    write_index(directory, weight_map)
    with pytest.raises(ExportError, match=r"index\.json: weight_map is no JSON object of file"):
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
