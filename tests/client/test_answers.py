"""What the server's answers mean: no sockets here."""

import numpy as np
import pytest
from bertron_client import (
    InvalidInputError,
    OverloadedError,
    ProtocolError,
    ServerError,
)
from bertron_client._answers import (
    make_server_info,
    read_embeddings,
    read_limits,
    read_statistics,
    read_tokens,
    with_caller_index,
)
from bertron_client._wire.operations import Output
from bertron_client._wire.tensors import bytes_tensor

CONFIG = {
    "max_batch_size": 64,
    "output": [{"name": "EMBEDDING", "dims": ["384"]}],  # protobuf's JSON writes int64 as strings
    "parameters": {"max_tokens_per_text": {"string_value": "256"}},
}


def test_rows_can_be_read():
    outputs = {
        "EMBEDDING": Output("FP32", (2, 3), np.arange(6, dtype="<f4").tobytes()),
        "TOKEN_COUNT": Output("INT32", (2, 1), np.array([4, 5], "<i4").tobytes()),
        "TRUNCATED": Output("BOOL", (2, 1), b"\x00\x01"),
    }
    answer = read_embeddings(outputs, 2, 3)
    np.testing.assert_array_equal(answer.vectors, [[0, 1, 2], [3, 4, 5]])
    assert answer.token_counts.tolist() == [4, 5]
    assert answer.truncated.tolist() == [False, True]


def tokens(mask=((1, 1, 0), (1, 1, 1))):
    strings = ["[CLS]", "ä", "", "[CLS]", "b", "c"]
    return {
        "TOKENS": Output("BYTES", (2, 3), bytes_tensor([s.encode() for s in strings])),
        "OFFSETS": Output("INT32", (2, 3, 2), np.arange(12, dtype="<i4").tobytes()),
        "input_ids": Output("INT32", (2, 3), np.arange(6, dtype="<i4").tobytes()),
        "token_type_ids": Output("INT32", (2, 3), np.zeros(6, "<i4").tobytes()),
        "attention_mask": Output("INT32", (2, 3), np.array(mask, "<i4").tobytes()),
        "TRUNCATED": Output("BOOL", (2, 1), b"\x00\x01"),
    }


def test_padding_of_tokens_is_dropped():
    first, second = read_tokens(tokens(), 2)
    assert first.tokens == ["[CLS]", "ä"]
    assert second.tokens == ["[CLS]", "b", "c"]
    assert first.ids.tolist() == [0, 1]
    assert second.offsets.tolist() == [[6, 7], [8, 9], [10, 11]]
    assert (first.truncated, second.truncated) == (False, True)
    assert len(second) == len(second.type_ids) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"TOKENS": Output("BYTES", (2, 3), bytes_tensor([b"a"] * 5))},
        {"TOKENS": Output("BYTES", (2, 3), bytes_tensor([b"\xff"] * 6))},
        {"TOKENS": Output("BYTES", (2, 3), bytes_tensor([b"ab"] * 6)[:-1])},
        {"TOKENS": Output("BYTES", (2, 4), bytes_tensor([b"a"] * 8))},
        {"attention_mask": Output("INT32", (2, 3), np.array([1, 0, 1] * 2, "<i4").tobytes())},
        {"OFFSETS": Output("INT32", (2, 3), np.zeros(6, "<i4").tobytes())},
    ],
)
def test_tokens_that_cannot_be_right_are_refused(change):
    with pytest.raises(ProtocolError):
        read_tokens({**tokens(), **change}, 2)


@pytest.mark.parametrize(
    ("kind", "message", "expected"),
    [
        (InvalidInputError, "text 1 has 9 tokens", "text 30 has 9 tokens"),
        (InvalidInputError, "text pair 0 has 9 characters", "text pair 20 has 9 characters"),
        (InvalidInputError, "TEXT_PAIR 1 is not UTF-8", "TEXT_PAIR 30 is not UTF-8"),
        (ServerError, "embedding of text 0 is not finite", "embedding of text 20 is not finite"),
        (InvalidInputError, "text 2 is beyond the request", "text 2 is beyond the request"),
        (InvalidInputError, "nothing to see", "nothing to see"),
        (OverloadedError, "text 1 waits", "text 1 waits"),
    ],
)
def test_the_number_of_a_text_becomes_the_callers(kind, message, expected):
    error = with_caller_index(kind(message), [20, 30])
    assert type(error) is kind
    assert str(error) == expected
    if kind is InvalidInputError:
        assert error.index == next((n for n in (20, 30) if str(n) in expected), None)


def test_what_the_server_does_not_say_is_none():
    limits = read_limits(CONFIG, "m")
    assert (limits.embedding_size, limits.max_batch_size) == (384, 64)
    assert (limits.max_tokens_per_text, limits.max_characters_per_text) == (256, None)
    assert limits.max_characters_per_request is None
    info = make_server_info("http://x:1", "m", limits, {}, {}, {})
    assert info.server_version == "unknown"
    assert info.model_versions == info.models == ()
    assert {info.tokenizer, info.dtype, info.device, info.pooling, info.normalized} == {None}


def test_what_the_server_says_is_there():
    config = {
        **CONFIG,
        "ensemble_scheduling": {"step": [{"model_name": "t"}, {"model_name": "b"}]},
        "parameters": {
            "dtype": {"string_value": "bfloat16"},
            "pooling": {"string_value": "cls"},
            "normalize": {"string_value": "false"},
        },
    }
    encoder = {"instance_group": [{"kind": "KIND_GPU"}, {"kind": "KIND_GPU"}]}
    info = make_server_info(
        "http://x:1", "m", read_limits(config, "m"), {"version": "3"}, {"versions": ["2"]}, encoder
    )
    assert (info.models, info.tokenizer, info.device) == (("t", "b"), "t", "gpu")
    assert (info.dtype, info.pooling, info.normalized) == ("bfloat16", "cls", False)
    assert (info.server_version, info.model_versions) == ("3", ("2",))


@pytest.mark.parametrize(
    "change",
    [
        {"output": []},
        {"output": [{"name": "EMBEDDING", "dims": [3, 4]}]},
        {"output": [{"name": "EMBEDDING", "dims": [-1]}]},
        {"max_batch_size": 0},
        {"max_batch_size": "many"},
        {"parameters": {"max_tokens_per_text": {"string_value": "x"}}},
        {"parameters": []},
        {"ensemble_scheduling": {"step": [{}]}},
        {"ensemble_scheduling": 3},
    ],
)
def test_a_configuration_of_another_kind_of_model_is_refused(change):
    with pytest.raises(ProtocolError, match="model m at u"):
        read_limits({**CONFIG, **change}, "model m at u")


def test_statistics_of_a_models_versions_are_added():
    entry = {
        "name": "bert",
        "inference_count": "12",  # protobuf's JSON writes int64 as strings
        "execution_count": 3,
        "inference_stats": {
            "success": {"count": 4, "ns": 9},
            "fail": {"count": "1"},
            "queue": {"count": 4, "ns": "8000000"},
            "compute_input": {"count": 4, "ns": 1_000_000},
            "compute_infer": {"count": 4, "ns": 6_000_000},
            "compute_output": {"count": 4, "ns": 1_000_000},
        },
        "batch_stats": [
            {"batch_size": 8, "compute_infer": {"count": 1}},
            {"batch_size": "2", "compute_infer": {"count": "2"}},
        ],
    }
    statistics = read_statistics({"model_stats": [entry, entry, {"name": "idle"}]}, "m")
    bert = statistics["bert"]
    assert (bert.inferences, bert.executions) == (24, 6)
    assert (bert.requests_succeeded, bert.requests_failed) == (8, 2)
    assert (bert.queue_ms, bert.compute_ms) == (2.0, 2.0)
    assert bert.batch_sizes == {2: 4, 8: 2}
    assert statistics["idle"].queue_ms == 0


@pytest.mark.parametrize("value", [{"model_stats": [{}]}, {"model_stats": 3}, {"model_stats": [3]}])
def test_statistics_in_another_form_are_refused(value):
    with pytest.raises(ProtocolError, match="not Triton server's"):
        read_statistics(value, "m")
