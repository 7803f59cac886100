"""Operations as HTTP requests, and HTTP answers as results: no sockets here."""

import email.utils
import gzip
import json
import time

import pytest
from bertron_client import (
    AuthenticationError,
    InvalidInputError,
    ModelNotFoundError,
    OverloadedError,
    ProtocolError,
    ServerError,
    ServerUnavailableError,
)
from bertron_client._wire import http
from bertron_client._wire.http import HttpAnswer
from bertron_client._wire.operations import (
    Infer,
    InputTensor,
    ModelConfig,
    ModelStatistics,
    RegisterRegion,
    SharedSlice,
    UnregisterRegion,
)
from bertron_client._wire.tensors import bytes_tensor
from hypothesis import given
from hypothesis import strategies as st

INFER = Infer(
    "m/1",
    [
        InputTensor("TEXT", (2, 1), bytes_tensor([b"one", b"two!"])),
        InputTensor("TEXT_PAIR", (2, 1), bytes_tensor([b"1", b"2" * 2000])),
    ],
    {"EMBEDDING": None},
    {"truncate": "left", "is_pretokenized": True},
)


def test_an_http_body_says_how_long_each_part_is():
    request = http.encode(INFER, 1500, None)
    assert (request.method, request.path) == ("POST", "/v2/models/m%2F1/infer")
    json_length = int(request.headers[http.HEADER_LENGTH])
    header = json.loads(request.body[:json_length])
    assert header["parameters"] == {"truncate": "left", "is_pretokenized": True, "timeout": 1500}
    assert [tensor["name"] for tensor in header["inputs"]] == ["TEXT", "TEXT_PAIR"]
    sizes = [tensor["parameters"]["binary_data_size"] for tensor in header["inputs"]]
    assert json_length + sum(sizes) == len(request.body)
    assert "content-encoding" not in request.headers


def test_a_compressed_request_is_the_same_and_smaller():
    plain, packed = http.encode(INFER, 1500, None), http.encode(INFER, 1500, "gzip")
    assert packed.headers["content-encoding"] == packed.headers["accept-encoding"] == "gzip"
    assert gzip.decompress(packed.body) == plain.body
    assert len(packed.body) < len(plain.body) / 4


def test_a_short_request_is_not_worth_compressing():
    short = Infer("m", [InputTensor("TEXT", (1, 1), bytes_tensor([b"hello"]))], {"EMBEDDING": None})
    request = http.encode(short, 1500, "gzip")
    assert "content-encoding" not in request.headers
    assert request.headers["accept-encoding"] == "gzip"


def test_tensors_in_shared_memory_are_named_and_not_sent():
    operation = Infer(
        "m",
        [InputTensor("TEXT", (1, 1), SharedSlice("r", 8, 64))],
        {"EMBEDDING": SharedSlice("r", 128, 256)},
    )
    request = http.encode(operation, 1, None)
    header = json.loads(request.body)
    place = {"shared_memory_region": "r", "shared_memory_offset": 8, "shared_memory_byte_size": 64}
    assert header["inputs"][0]["parameters"] == place
    assert header["outputs"][0]["parameters"]["shared_memory_offset"] == 128
    tensor = {
        "name": "EMBEDDING",
        "datatype": "FP32",
        "shape": [1, 64],
        "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 256},
    }
    answer = HttpAnswer(200, {}, json.dumps({"outputs": [tensor]}).encode())
    assert http.decode(operation, answer, "u")["EMBEDDING"].data is None


def test_regions_are_registered_by_name():
    request = http.encode(RegisterRegion("r", "/key", 4096), 1, None)
    assert request.path == "/v2/systemsharedmemory/region/r/register"
    assert json.loads(request.body) == {"key": "/key", "offset": 0, "byte_size": 4096}
    request = http.encode(UnregisterRegion("r"), 1, None)
    assert (request.method, request.path) == (
        "POST",
        "/v2/systemsharedmemory/region/r/unregister",
    )


@given(st.binary(max_size=60), st.none() | st.integers(-5, 70).map(str) | st.text(max_size=4))
def test_any_bytes_are_a_protocol_error(body, header_length):
    headers = {} if header_length is None else {http.HEADER_LENGTH: header_length}
    with pytest.raises(ProtocolError):
        http.decode(INFER, HttpAnswer(200, headers, body), "u")


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
        http.decode(INFER, HttpAnswer(200, {}, json.dumps(header).encode()), "u")


@pytest.mark.parametrize("body", [b"", b"[]", b"3", b"{", b"[" * 100_000])
@pytest.mark.parametrize("operation", [ModelConfig("m"), ModelStatistics()])
def test_what_is_asked_in_json_is_answered_in_json(operation, body):
    with pytest.raises(ProtocolError, match=f"{type(operation).__name__} was .*answered"):
        http.decode(operation, HttpAnswer(200, {}, body), "u")


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (400, "text 0 is not to my liking", InvalidInputError),
        (400, "Request for unknown model: 'm' is not found", ModelNotFoundError),
        (401, "no", AuthenticationError),
        (403, "This API is restricted", AuthenticationError),
        (404, "Request for unknown model: 'm' is not found", ModelNotFoundError),
        (407, "proxy", AuthenticationError),
        (413, "too large", InvalidInputError),
        (429, "slow down", OverloadedError),
        (500, "the forward failed", ServerError),
        (502, "bad gateway", ServerUnavailableError),
        (503, "Server is stopping", ServerUnavailableError),
        (503, "Exceeds maximum queue size", OverloadedError),
        (503, "Request timeout expired", OverloadedError),
        (302, "elsewhere", ProtocolError),
        (507, "?", ServerError),
    ],
)
def test_each_status_has_its_error(status, message, kind):
    answer = HttpAnswer(status, {}, json.dumps({"error": message}).encode())
    with pytest.raises(kind) as caught:
        http.decode(INFER, answer, "model 'm' at u")
    assert type(caught.value) is kind
    assert str(caught.value) == f"{message} (HTTP {status} from model 'm' at u)"


def test_an_error_that_is_not_json_is_quoted():
    with pytest.raises(ServerUnavailableError, match="<html>bad gateway"):
        http.decode(INFER, HttpAnswer(502, {}, b"<html>bad gateway" + b" " * 500), "u")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("3", 3.0),
        ("0.5", 0.5),
        ("-1", 0.0),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("Tue, 99 Foo 2026", None),
        (None, None),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_seconds(value, seconds, status):
    headers = {} if value is None else {"retry-after": value}
    with pytest.raises((OverloadedError, ServerUnavailableError)) as caught:
        http.decode(INFER, HttpAnswer(status, headers, b""), "u")
    assert caught.value.retry_after_s == seconds


def test_retry_after_may_be_a_date():
    date = email.utils.formatdate(time.time() + 60, usegmt=True)
    with pytest.raises(OverloadedError) as caught:
        http.decode(INFER, HttpAnswer(429, {"retry-after": date}, b""), "u")
    assert 57 < caught.value.retry_after_s <= 60
