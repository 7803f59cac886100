"""What sentence-transformers' files say: what is taken, and what is refused with which words."""

import json
from pathlib import Path

import pytest
from bertron_torchscript.checkpoint import read_checkpoint
from bertron_torchscript.errors import ExportError
from bertron_torchscript.sentence_transformers import TRANSFORMER_FILES, read_sentence_transformers

PACKAGE = "sentence_transformers.models"
CONFIG = "config_sentence_transformers.json"


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


def write_modules(directory: Path, *kinds: str) -> None:
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": "" if kind == "Transformer" else f"{index}_{kind}",
            "type": f"{PACKAGE}.{kind}",
        }
        for index, kind in enumerate(kinds)
    ]
    write_json(directory / "modules.json", modules)


@pytest.fixture
def directory(tmp_path):
    write_modules(tmp_path, "Transformer", "Pooling", "Normalize")
    write_json(tmp_path / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True})
    return tmp_path


def pooling_of(directory: Path, **config: object) -> str | None:
    write_json(directory / "1_Pooling" / "config.json", config)
    return read_sentence_transformers(directory).pooling_mode


def test_a_directory_without_such_files_says_nothing(tmp_path):
    said = read_sentence_transformers(tmp_path)
    assert (said.pooling_mode, said.normalize, said.max_seq_length) == (None, False, None)
    assert not said.prompts


@pytest.mark.parametrize(
    "name",
    [
        "sentence_transformers.models.Dense",
        "sentence_transformers.sparse_encoder.modules.mlm_transformer.MLMTransformer",
        "my_models.Pooling",
        "sentence_transformers_more.Pooling",
        None,
    ],
)
def test_a_module_of_another_class_is_refused(directory, name):
    modules = json.loads((directory / "modules.json").read_text())
    modules[1]["type"] = name
    write_json(directory / "modules.json", modules)
    with pytest.raises(ExportError, match=rf"modules\.json: module type {name!r} is not supported"):
        read_sentence_transformers(directory)


def test_the_newer_package_of_a_module_is_known(directory):
    text = (directory / "modules.json").read_text()
    newer = text.replace(PACKAGE, "sentence_transformers.sentence_transformer.modules.pooling")
    (directory / "modules.json").write_text(newer)
    assert read_sentence_transformers(directory).pooling_mode == "mean"


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        (["x"], "the module 'x' is no JSON object"),
        ([{"type": f"{PACKAGE}.Pooling", "path": None}], "Pooling is None, expected a string"),
    ],
)
def test_modules_that_are_none_are_named(directory, modules, words):
    write_json(directory / "modules.json", modules)
    with pytest.raises(ExportError, match=rf"modules\.json: .*{words}"):
        read_sentence_transformers(directory)


@pytest.mark.parametrize(
    "kinds",
    [
        (),
        ("Pooling",),
        ("Transformer", "Normalize", "Pooling"),
        ("Transformer", "Pooling", "Pooling"),
        ("Transformer", "Transformer", "Pooling"),
        ("Transformer", "Pooling", "Normalize", "Pooling"),
    ],
)
def test_modules_in_an_order_that_we_do_not_compute_are_refused(directory, kinds):
    write_modules(directory, *kinds)
    with pytest.raises(ExportError, match=r"modules\.json: the modules .* in this order"):
        read_sentence_transformers(directory, "mean")


def test_a_second_normalize_changes_nothing(directory):
    write_modules(directory, "Transformer", "Pooling", "Normalize", "Normalize")
    assert read_sentence_transformers(directory).normalize


def test_the_user_names_a_pooling_where_modules_json_does_not(directory):
    write_modules(directory, "Transformer")
    with pytest.raises(ExportError, match=r"modules\.json names no pooling.*--pooling"):
        read_sentence_transformers(directory)
    assert read_sentence_transformers(directory, "cls").pooling_mode == "cls"


def test_weights_in_a_folder_of_their_own_are_found_by_the_user(directory):
    modules = json.loads((directory / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    write_json(directory / "modules.json", modules)
    # without config.json: what modules.json says comes first
    with pytest.raises(ExportError, match=r"lies in '0_Transformer'.*export .*/0_Transformer itse"):
        read_checkpoint(str(directory))


def test_a_router_is_refused_by_its_name(tmp_path):
    router = "sentence_transformers.base.modules.router.Router"
    write_json(tmp_path / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": router}])
    with pytest.raises(ExportError, match=r"modules\.json: module type '.*\.Router'"):
        read_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "mode"),
    [
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": ["cls"]}, "cls"),
        ({"pooling_mode": ["mean", "max"]}, "mean-max"),
        ({"pooling_mode": "cls", "pooling_mode_mean_tokens": True}, "cls"),
        # sentence-transformers' own default
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": False}, "mean"),
        ({"word_embedding_dimension": 48}, "mean"),
    ],
)
def test_a_pooling_is_read_as_sentence_transformers_reads_it(directory, config, mode):
    assert pooling_of(directory, **config) == mode


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True},
            "concatenates max then mean.*--pooling mean-max gives .* mean first, then max",
        ),
        ({"pooling_mode": ["max", "mean"]}, "concatenates max then mean"),
        (
            {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
            "pooling cls and mean concatenated is not supported; --pooling would give other vec",
        ),
        (
            {"pooling_mode_weightedmean_tokens": True},
            "pooling weightedmean is not supported; --pooling would give other vectors than",
        ),
        (
            {"pooling_mode_mean_sqrt_len_tokens": True},
            "pooling mean_sqrt_len_tokens is not supported; --pooling mean .* another length",
        ),
        ({"pooling_mode": []}, "pooling none is not supported"),
        ({"pooling_mode": [["mean"]]}, "is not supported"),
    ],
)
def test_a_pooling_that_we_do_not_compute_is_refused(directory, config, words):
    with pytest.raises(ExportError, match=rf"1_Pooling/config\.json: .*{words}"):
        pooling_of(directory, **config)


@pytest.mark.parametrize("name", TRANSFORMER_FILES)
def test_each_name_of_the_transformers_file_is_read(directory, name):
    write_json(directory / name, {"max_seq_length": 33, "do_lower_case": True})
    said = read_sentence_transformers(directory)
    assert (said.transformer_file, said.max_seq_length) == (directory / name, 33)
    assert said.does_lower_case


def test_the_transformers_file_of_an_old_layouts_folder_counts_too(tmp_path):
    write_json(tmp_path / TRANSFORMER_FILES[0], {"max_seq_length": 33})
    assert read_sentence_transformers(tmp_path).max_seq_length == 33


def test_of_two_such_files_the_first_that_says_something_counts(directory):
    write_json(directory / TRANSFORMER_FILES[0], {})
    write_json(directory / TRANSFORMER_FILES[2], {"max_seq_length": 22})
    write_json(directory / TRANSFORMER_FILES[1], {"max_seq_length": 11})
    assert read_sentence_transformers(directory).max_seq_length == 11


@pytest.mark.parametrize(
    "config",
    [
        {"model_args": {"dtype": "float16", "attn_implementation": "sdpa"}, "tokenizer_args": {}},
        {"model_kwargs": {"torch_dtype": "float16", "low_cpu_mem_usage": True}},
        {"tokenizer_args": {"trust_remote_code": True}, "config_args": None},
        {
            "transformer_task": "feature-extraction",
            "modality_config": {
                "text": {"method": "forward", "method_output_name": "last_hidden_state"}
            },
        },
    ],
)
def test_settings_that_change_no_vector_are_passed_over(directory, config):
    write_json(directory / TRANSFORMER_FILES[0], config)
    assert read_sentence_transformers(directory).pooling_mode == "mean"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_args": {"num_hidden_layers": 1}}, "model_args is {'num_hidden_layers': 1}.*remo"),
        ({"model_kwargs": {"add_pooling_layer": False}}, "model_kwargs is .*remove the key"),
        ({"config_args": {"hidden_act": "relu"}}, "config_args is .*remove the key"),
        ({"config_kwargs": {"hidden_act": "relu"}}, "config_kwargs is .*remove the key"),
        ({"tokenizer_args": {"model_max_length": 9}}, "tokenizer_args is .*remove the key"),
        ({"tokenizer_kwargs": {"x": 1}}, "tokenizer_kwargs is .*remove the key"),
        ({"processor_kwargs": {"x": 1}}, "processor_kwargs is .*remove the key"),
        ({"processing_kwargs": {"text": {}}}, "processing_kwargs is .*remove the key"),
        ({"processing_kwargs": ["x"]}, r"processing_kwargs is \['x'\].*remove the key"),
        ({"transformer_task": "fill-mask"}, "transformer_task 'fill-mask' is not supported.*rem"),
        (
            {"modality_config": {"text": {"method_output_name": "pooler_output"}}},
            "modality_config takes 'pooler_output' of a text.*Remove the key",
        ),
        ({"modality_config": {"image": {}}}, "modality_config takes None of a text"),
        ({"modality_config": ["text"]}, "modality_config takes None of a text"),
    ],
)
def test_settings_that_change_vectors_are_refused(directory, config, words):
    write_json(directory / TRANSFORMER_FILES[0], config)
    with pytest.raises(ExportError, match=rf"{TRANSFORMER_FILES[0]}: {words}"):
        read_sentence_transformers(directory)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"prompts": {"query": "query: "}, "default_prompt_name": "query"},
            "default_prompt_name is 'query'.* 'query: ' before every text.*remove the key, and let",
        ),
        ({"truncate_dim": 16}, "truncate_dim is 16.*remove the key.*dimensions="),
        ({"prompts": ["query: "]}, "prompts is .*expected a JSON object"),
        ({"prompts": {"query": 1}}, "the prompt query is 1, expected a string"),
    ],
)
def test_what_would_change_every_vector_is_refused(directory, config, words):
    write_json(directory / CONFIG, config)
    with pytest.raises(ExportError, match=rf"{CONFIG}: .*{words}"):
        read_sentence_transformers(directory)


@pytest.mark.parametrize(
    "config",
    [
        {"prompts": {"query": "", "document": None}, "default_prompt_name": "query"},
        {"prompts": {}, "default_prompt_name": None, "truncate_dim": None},
        {"default_prompt_name": "query"},
    ],
)
def test_prompts_that_are_empty_are_none(directory, config):
    write_json(directory / CONFIG, config)
    said = read_sentence_transformers(directory)
    assert said.prompts == {}
    assert said.notes == ()


def test_prompts_are_told_in_one_line(directory):
    prompts = {"query": "query: ", "long": "x\n" * 100, "document": ""}
    write_json(directory / CONFIG, {"prompts": prompts})
    (note,) = read_sentence_transformers(directory).notes
    assert note.startswith("the checkpoint has prompts (query 'query: ', long 'x\\nx")
    assert note.endswith("put it before the text yourself: the server adds none")
    assert "document" not in note
    assert "\n" not in note
    assert len(note) < 250
    write_json(directory / CONFIG, {"prompts": {str(name): "x" for name in range(7)}})
    (note,) = read_sentence_transformers(directory).notes
    assert "4 'x', 2 more)" in note


def test_prompts_that_are_not_pooled_are_refused_where_there_are_prompts(directory):
    assert pooling_of(directory, pooling_mode="mean", include_prompt=False) == "mean"
    write_json(directory / CONFIG, {"prompts": {"query": "query: "}})
    for chosen in (None, "cls"):
        with pytest.raises(ExportError, match=r"1_Pooling/config\.json: include_prompt is false"):
            read_sentence_transformers(directory, chosen)
