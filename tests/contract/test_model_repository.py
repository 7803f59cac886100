"""What must agree between the configurations, the code and the documents."""

import itertools
import re
from pathlib import Path

import pytest
from bertron_backend.encoder_queue import Ticket
from bertron_backend.settings import EncoderSettings, GpuSettings, TokenizerSettings
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

ROOT = Path(__file__).parents[2]
NAMES = ("tokenizer", "bert", "text_embedding")


def parsed(name: str) -> model_config_pb2.ModelConfig:
    text = (ROOT / "model_repository" / name / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


@pytest.fixture(scope="module")
def configs():
    return {name: parsed(name) for name in NAMES}


def tensors(values):
    return {value.name: (value.data_type, tuple(value.dims)) for value in values}


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_is_its_model(name, configs):
    assert configs[name].name == name


def test_the_ensemble_passes_on_what_its_steps_give(configs):
    ensemble = configs["text_embedding"]
    flowing = tensors(ensemble.input)
    for step in ensemble.ensemble_scheduling.step:
        model = configs[step.model_name]
        inputs = tensors(model.input)
        assert set(step.input_map) == set(inputs)
        for name, flows in step.input_map.items():
            assert flowing[flows] == inputs[name], name
        for name, flows in step.output_map.items():
            flowing[flows] = tensors(model.output)[name]
    for name, declared in tensors(ensemble.output).items():
        assert flowing[name] == declared, name


def test_optional_inputs_are_optional_on_both_sides(configs):
    optional = {
        name: {value.name for value in configs[name].input if value.optional} for name in NAMES
    }
    assert optional == {
        "tokenizer": {"TEXT_PAIR"},
        "bert": {"ticket"},
        "text_embedding": {"TEXT_PAIR"},
    }


def test_batch_limits_agree(configs):
    assert len({config.max_batch_size for config in configs.values()}) == 1


@pytest.mark.parametrize(
    "key", ["max_tokens_per_text", "max_characters_per_text", "max_characters_per_request"]
)
def test_published_limits_are_the_enforced_ones(configs, key):
    published = configs["text_embedding"].parameters[key].string_value
    assert published == configs["tokenizer"].parameters[key].string_value


def test_the_ensemble_says_what_the_model_is(configs):
    published = {
        key: value.string_value
        for key, value in configs["text_embedding"].parameters.items()
        if not key.startswith("max_")
    }
    assert published == {"dtype": "float32", "pooling": "mean", "normalize": "true"}


def test_the_ensemble_never_asks_for_token_strings(configs):
    """They are computed for those who ask; asking costs every request."""
    (asked_for,) = (
        set(step.output_map)
        for step in configs["text_embedding"].ensemble_scheduling.step
        if step.model_name == "tokenizer"
    )
    offered = tensors(configs["tokenizer"].output)
    assert set(offered) - asked_for == {"TOKENS", "OFFSETS", "TOKEN_COUNT", "TRUNCATED"}
    assert offered["OFFSETS"] == (model_config_pb2.TYPE_INT32, (-1, 2))


def test_every_output_of_the_ensemble_needs_the_encoder(configs):
    """Else a request for the others leaves it out, and its tokens count as waiting for it."""
    ensemble = configs["text_embedding"]
    (given,) = (
        set(step.output_map.values())
        for step in ensemble.ensemble_scheduling.step
        if step.model_name == "bert"
    )
    assert {output.name for output in ensemble.output} <= given


def test_requests_of_different_length_may_join(configs):
    bert = configs["bert"]
    assert bert.HasField("dynamic_batching")
    assert all(value.allow_ragged_batch for value in bert.input if tuple(value.dims) == (-1,))


def test_waiting_is_bounded_by_deadlines_and_by_no_queue_policy(configs):
    """A queue policy loses wake-ups, 500 ms each: docs/decisions/0007."""
    for config in configs.values():
        assert not config.dynamic_batching.HasField("default_queue_policy")
        assert not config.dynamic_batching.priority_levels
    assert int(configs["tokenizer"].parameters["max_wait_us"].string_value) > 0
    assert tensors(configs["bert"].input)["ticket"] == (
        model_config_pb2.TYPE_INT64,
        (len(Ticket._fields) + 1,),  # and whether the text was cut
    )


def test_the_tokenizer_never_joins_requests(configs):
    """A cut-off BYTES tensor fails everything it is joined with: docs/decisions/0003."""
    assert not configs["tokenizer"].HasField("dynamic_batching")


def test_the_tokenizers_first_text_is_not_a_users(configs):
    (warmup,) = configs["tokenizer"].model_warmup
    assert set(warmup.inputs) == {"TEXT"}


def test_no_kind_asks_for_a_gpu(configs):
    kinds = {group.kind for name in NAMES for group in configs[name].instance_group}
    assert model_config_pb2.ModelInstanceGroup.KIND_GPU not in kinds


def test_the_code_reads_every_parameter(configs):
    as_json = {
        name: json_format.MessageToDict(config, preserving_proto_field_name=True)
        for name, config in configs.items()
    }
    tokenizer = TokenizerSettings.from_model_config(as_json["tokenizer"])
    encoder = EncoderSettings.from_model_config(as_json["bert"])
    assert set(vars(tokenizer)) == set(configs["tokenizer"].parameters)
    gpu = GpuSettings.from_model_config(as_json["bert"])
    parameters = set(vars(encoder)) - {"cpu_instances"} | {"gpu_dtype"}
    assert parameters == set(configs["bert"].parameters)
    assert gpu == GpuSettings(gpu_dtype="float16")


@pytest.mark.parametrize("name", NAMES)
def test_every_number_has_its_reason(name):
    """A number in config.pbtxt has a comment on its line or the one above."""
    lines = (ROOT / "model_repository" / name / "config.pbtxt").read_text().splitlines()
    reasoned = re.compile(r"max_batch_size|_queue_size|microseconds|string_value: \"\d+")
    for before, line in itertools.pairwise(lines):
        if name != "text_embedding" and reasoned.search(line.split("#")[0]):
            assert "#" in line or "#" in before, line
