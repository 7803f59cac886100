"""Parameters of config.pbtxt, read once, with words for each mistake."""

import pytest
from bertron_backend import settings as settings_module
from bertron_backend.cores import usable_cores
from bertron_backend.settings import EncoderSettings, GpuSettings, TokenizerSettings

ENCODER = {
    "warmup_shapes": "1x8,32x64",
    "max_tokens_per_forward": "16384",
    "intra_op_threads": "3",
}


def config(**parameters):
    return {
        "name": "bert",
        "parameters": {key: {"string_value": value} for key, value in parameters.items()},
    }


def test_every_parameter_is_read():
    settings = EncoderSettings.from_model_config(config(**ENCODER))
    assert settings == EncoderSettings(((1, 8), (32, 64)), 16384, 3)


def test_zero_threads_are_as_many_as_there_are_cores():
    settings = EncoderSettings.from_model_config(config(**{**ENCODER, "intra_op_threads": "0"}))
    assert settings.intra_op_threads == usable_cores() >= 1
    assert settings.cpu_instances == 1


@pytest.mark.parametrize(
    ("groups", "instances"),
    [
        ((("KIND_CPU", 1),), 1),
        ((("KIND_CPU", 2),), 2),
        ((("KIND_CPU", 1), ("KIND_CPU", 2)), 3),
        ((("KIND_CPU", 1000),), 1000),
        ((("KIND_GPU", 4),), 1),
        ((("KIND_GPU", 4), ("KIND_CPU", 2)), 2),
    ],
)
def test_instances_on_cpus_share_the_cores(groups, instances, monkeypatch):
    monkeypatch.setattr(settings_module, "usable_cores", lambda: 7)
    given = config(**{**ENCODER, "intra_op_threads": "0"})
    given["instance_group"] = [{"kind": kind, "count": count} for kind, count in groups]
    settings = EncoderSettings.from_model_config(given)
    assert settings.cpu_instances == instances
    assert settings.intra_op_threads == max(1, 7 // instances)
    given["parameters"]["intra_op_threads"] = {"string_value": "5"}
    assert EncoderSettings.from_model_config(given).intra_op_threads == 5


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("warmup_shapes", "8", r"'warmup_shapes' is '8', not a list such as"),
        ("warmup_shapes", "1x0", "not a list such as"),
        ("max_tokens_per_forward", "x", r"'max_tokens_per_forward' is 'x', not a whole number"),
        ("intra_op_threads", "-1", r"'intra_op_threads' is '-1', not a whole number"),
    ],
)
def test_a_wrong_value_is_named(key, value, words):
    with pytest.raises(ValueError, match=words):
        EncoderSettings.from_model_config(config(**{**ENCODER, key: value}))


def test_a_missing_parameter_is_named():
    with pytest.raises(
        ValueError, match=r"bert: config\.pbtxt has no parameter 'max_tokens_per_text'"
    ):
        TokenizerSettings.from_model_config(config(max_characters_per_text="5"))


def test_a_limit_of_nothing_is_refused():
    limits = {"max_tokens_per_text": "0", "max_characters_per_text": "5", "max_wait_us": "1"}
    with pytest.raises(ValueError, match=r"'max_tokens_per_text' is 0, not 1 or more"):
        TokenizerSettings.from_model_config(config(**limits))


def test_a_configuration_without_gpu_settings_has_the_defaults():
    assert GpuSettings.from_model_config(config(**ENCODER)) == GpuSettings()
    assert GpuSettings.from_model_config({"name": "bert"}) == GpuSettings()
    assert GpuSettings().cuda_graphs


def test_gpu_settings_are_read_where_there_are_some():
    read = GpuSettings.from_model_config
    assert read(config(cuda_graphs="false")) == GpuSettings(cuda_graphs=False)
    assert read(config(cuda_graph_megabytes="64")) == GpuSettings(cuda_graph_megabytes=64)
    assert read(config(cuda_graphs="true", cuda_graph_megabytes="5")) == GpuSettings(None, True, 5)
    assert read(config(gpu_dtype="bfloat16")) == GpuSettings(gpu_dtype="bfloat16")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("gpu_dtype", "int8", "'gpu_dtype' is 'int8', not one of float16, bfloat16, float32"),
        ("cuda_graphs", "on", "'cuda_graphs' is 'on', not true or false"),
        ("cuda_graph_megabytes", "0", "'cuda_graph_megabytes' is 0, not 1 or more"),
        ("cuda_graph_megabytes", "1G", "'cuda_graph_megabytes' is '1G', not a whole number"),
    ],
)
def test_a_wrong_gpu_setting_is_named(key, value, words):
    with pytest.raises(ValueError, match=words):
        GpuSettings.from_model_config(config(**{key: value}))
