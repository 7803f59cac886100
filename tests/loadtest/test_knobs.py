import pytest
from bertron_loadtest.knobs import SEARCH, read_value, with_value
from google.protobuf import text_format
from real_server import MODEL_REPOSITORY
from tritonclient.grpc import model_config_pb2  # type: ignore[attr-defined]

CONFIGS = {
    step: (MODEL_REPOSITORY / step / "config.pbtxt").read_text(encoding="utf-8")
    for step in ("bert", "tokenizer")
}
KNOBS = {f"{knob.step} {knob.name}": knob for trials in SEARCH for knob in trials.knobs}
# Where Triton server finds each number.
MEANINGS = {
    "bert count": lambda config: config.instance_group[0].count,
    "bert intra_op_threads": lambda c: int(c.parameters["intra_op_threads"].string_value),
    "bert max_tokens_per_forward": lambda c: int(
        c.parameters["max_tokens_per_forward"].string_value
    ),
    "bert max_batch_size": lambda config: config.max_batch_size,
    "bert max_queue_delay_microseconds": lambda c: c.dynamic_batching.max_queue_delay_microseconds,
    "tokenizer count": lambda config: config.instance_group[0].count,
}


def parsed(config):
    return text_format.Parse(config, model_config_pb2.ModelConfig())


@pytest.mark.parametrize("name", KNOBS)
def test_each_number_is_read_and_written_where_triton_server_looks_for_it(name):
    knob, meaning = KNOBS[name], MEANINGS[name]
    config = CONFIGS[knob.step]
    assert read_value(config, knob) == meaning(parsed(config))
    changed = with_value(config, knob, 7, "because")
    assert read_value(changed, knob) == meaning(parsed(changed)) == 7
    again = with_value(changed, knob, 9, "another reason")
    assert meaning(parsed(again)) == 9
    assert "because" not in again
    (line,) = set(again.splitlines()) - set(config.splitlines())
    assert line.endswith("  # another reason")
    assert len(again.splitlines()) == len(config.splitlines())


def test_all_values_are_numbers_that_the_server_takes():
    for trials in SEARCH:
        assert len(set(trials.values)) > 1
        for values in trials.values:
            assert len(values) == len(trials.knobs)
    most_in_a_request = parsed(CONFIGS["tokenizer"]).max_batch_size
    (texts,) = [trials for trials in SEARCH if trials.name == "texts a batch"]
    assert min(value for (value,) in texts.values) >= most_in_a_request


def test_a_configuration_without_the_number_is_named():
    knob = KNOBS["bert max_batch_size"]
    with pytest.raises(ValueError, match=r"config\.pbtxt of bert has no max_batch_size"):
        with_value("name: 'bert'\n", knob, 1)
