"""The pure half of the client: no sockets here."""

import json
import struct

import numpy as np
import pytest
from bertron_client import InvalidInputError, ProtocolError, ServerError
from bertron_client._codec import (
    Output,
    Request,
    bytes_tensor,
    http_infer_body,
    http_infer_outputs,
    join_answers,
    plan_requests,
    read_answer,
    read_server_info,
    with_caller_index,
)
from hypothesis import given
from hypothesis import strategies as st

CONFIG = {
    "max_batch_size": 64,
    "output": [{"name": "EMBEDDING", "dims": ["384"]}],  # protobuf's JSON writes int64 as strings
    "parameters": {"max_tokens_per_text": {"string_value": "256"}},
}


@given(st.lists(st.binary(max_size=20), max_size=200), st.integers(1, 70))
def test_a_plan_has_each_text_once_in_requests_of_even_size(texts, max_batch_size):
    requests = plan_requests(texts, None, truncate="right", max_batch_size=max_batch_size)
    rows = [row for request in requests for row in request.indices]
    assert sorted(rows) == list(range(len(texts)))
    assert len(requests) == -(-len(texts) // max_batch_size)
    sizes = [len(request.texts) for request in requests]
    assert not sizes or (max(sizes) <= max_batch_size and max(sizes) - min(sizes) <= 1)
    for request in requests:
        assert request.texts == [texts[row] for row in request.indices]


def test_the_binary_form_of_texts():
    assert bytes_tensor([b"", b"ab"]) == struct.pack("<I", 0) + struct.pack("<I", 2) + b"ab"


def test_an_http_body_says_how_long_each_part_is():
    request = Request([4, 2], [b"one", b"two!"], [b"1", b"2"], "left")
    body, json_length = http_infer_body(request, 1500)
    header = json.loads(body[:json_length])
    assert header["parameters"] == {"truncate": "left", "timeout": 1500}
    assert [tensor["name"] for tensor in header["inputs"]] == ["TEXT", "TEXT_PAIR"]
    sizes = [tensor["parameters"]["binary_data_size"] for tensor in header["inputs"]]
    assert json_length + sum(sizes) == len(body)


@given(st.binary(max_size=60), st.none() | st.integers(-5, 70).map(str) | st.text(max_size=4))
def test_any_bytes_are_a_protocol_error(body, header_length):
    with pytest.raises(ProtocolError):
        http_infer_outputs(body, header_length)


@pytest.mark.parametrize(
    "header",
    [
        [],
        {},
        {"outputs": 3},
        {"outputs": [{}]},
        {"outputs": [{"name": "A", "datatype": "FP32", "shape": [1e999], "parameters": {}}]},
        {"outputs": [{"name": "A", "parameters": {"binary_data_size": 99}}]},
        {"outputs": [{"name": "A", "parameters": {"binary_data_size": -1}}]},
        {"outputs": [{"name": "A", "parameters": {"binary_data_size": float("inf")}}]},
    ],
)
def test_json_that_is_no_answer_is_a_protocol_error(header):
    with pytest.raises(ProtocolError, match="not a KServe v2 inference answer"):
        http_infer_outputs(json.dumps(header).encode(), None)


def outputs(count, size):
    rows = np.arange(count * size, dtype="<f4").reshape(count, size)
    return {
        "EMBEDDING": Output("FP32", (count, size), rows.tobytes()),
        "TOKEN_COUNT": Output("INT32", (count, 1), np.arange(count, dtype="<i4").tobytes()),
        "TRUNCATED": Output("BOOL", (count, 1), bytes(count)),
    }


def test_answers_join_in_the_callers_order_and_can_be_written_to():
    requests = plan_requests([b"a", b"bbb", b"cc"], None, truncate="right", max_batch_size=2)
    answers = [read_answer(outputs(len(r.texts), 4), len(r.texts), 4) for r in requests]
    joined = join_answers(requests, answers, 3, 4)
    assert [list(request.indices) for request in requests] == [[1], [2, 0]]
    np.testing.assert_array_equal(
        joined.vectors[[1, 2, 0]], [[0, 1, 2, 3], [0, 1, 2, 3], range(4, 8)]
    )
    joined.vectors[0] = 0


@pytest.mark.parametrize(
    ("kind", "message", "expected"),
    [
        (InvalidInputError, "text 1 has 9 tokens", "text 30 has 9 tokens"),
        (InvalidInputError, "text pair 0 has 9 characters", "text pair 20 has 9 characters"),
        (InvalidInputError, "TEXT_PAIR 1 is not UTF-8", "TEXT_PAIR 30 is not UTF-8"),
        (ServerError, "embedding of text 0 is not finite", "embedding of text 20 is not finite"),
        (InvalidInputError, "text 2 is beyond the request", "text 2 is beyond the request"),
        (InvalidInputError, "nothing to see", "nothing to see"),
    ],
)
def test_the_number_of_a_text_becomes_the_callers(kind, message, expected):
    error = with_caller_index(kind(message), Request([20, 30], [b"", b""], None, "right"))
    assert type(error) is kind
    assert str(error) == expected
    if kind is InvalidInputError:
        assert error.index == next((n for n in (20, 30) if str(n) in expected), None)


def test_limits_that_the_server_does_not_name_are_none():
    info = read_server_info("http://x:1", "m", "2.51", CONFIG)
    assert (info.embedding_size, info.max_batch_size) == (384, 64)
    assert (info.max_tokens_per_text, info.max_characters_per_text) == (256, None)


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
    ],
)
def test_a_configuration_of_another_kind_of_model_is_refused(change):
    with pytest.raises(ProtocolError, match="m"):
        read_server_info("http://x:1", "m", "2.51", {**CONFIG, **change})
