"""Everything a stranger may send: each gets its documented answer, and nobody else notices.

docs/inputs.md is the same list for readers.
"""

import json
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from bertron_client import Client, InvalidInputError
from bertron_server.stub_processes import running_stubs
from real_server import TEXTS, TIMEOUT_S, Neighbours, raw_http
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

INFER = "/v2/models/text_embedding/infer"


@pytest.fixture(scope="module", autouse=True)
def neighbours(server, known):
    """Runs through all of this file's tests; none of them may touch a neighbour's answer."""
    with Neighbours(server.grpc_url, known) as running:
        yield running
    assert running.failures == []
    assert running.answered > 50


@pytest.fixture(autouse=True)
def _still_answering(server, known, neighbours):
    yield
    assert neighbours.failures == []
    with Client(server.http_url, timeout_s=TIMEOUT_S) as client:
        assert np.allclose(np.asarray(client.embed(TEXTS[:1])), known[:1], atol=1e-5)


def json_request(data, shape=None, datatype="BYTES", name="TEXT", **parameters):
    tensor = {"name": name, "shape": shape or [len(data), 1], "datatype": datatype, "data": data}
    return {"inputs": [tensor], "parameters": parameters}


def assert_refused(status, body, *words, code=400):
    assert status == code, body
    message = json.loads(body)["error"]
    assert "Traceback" not in message
    assert ".py" not in message
    for word in words:
        assert word in message, message


WELCOME = {
    "empty string": "",
    "blanks": " \t\n  ",
    "10,000 words": "word " * 10_000,
    "4-byte emoji": "🚀🎉👩‍👩‍👧‍👦🏳️‍🌈",
    "Chinese": "機械学習のモデル 这家餐厅的面很好吃",
    "Arabic": "كان الطقس جميلا في ذلك اليوم",
    "NUL and control characters": "a\x00b\x01\x02\x1f\x7f\x85c",
    "special tokens spelled out": "[CLS] [SEP] [PAD] [MASK] [UNK] </s> <pad>",
    "right-to-left override and combining": "\u202eabc\u0301\u0301\u0301",
}


@pytest.mark.parametrize("text", WELCOME.values(), ids=WELCOME.keys())
def test_any_unicode_text_has_an_embedding(client, text):
    answer = client.embed([TEXTS[0], text])
    assert answer.shape == (2, 384)
    assert np.allclose(np.linalg.norm(np.asarray(answer), axis=1), 1, atol=1e-5)
    assert answer.truncated.tolist() == [False, len(text) > 10_000]


def test_an_empty_list_is_an_empty_array(client):
    assert client.embed([]).shape == (0, 384)


def test_zero_texts_on_the_wire_are_refused(server):
    status, body = raw_http(server.http_url, INFER, json_request([], shape=[0, 1]))
    assert_refused(status, body)


def test_a_blank_text_is_that_of_transformers(client):
    empty, blank = np.asarray(client.embed(["", "  "]))
    assert np.allclose(empty, blank, atol=1e-6)


def test_too_many_characters_are_refused_with_limit_and_value(server):
    request = json_request(["fine", "x" * 100_001])
    status, body = raw_http(server.http_url, INFER, request)
    assert_refused(status, body, "text 1 has 100001 characters", "at most 100000")


def test_too_many_characters_together_are_refused_with_limit_and_value(server):
    request = json_request(["x" * 5000] * 40)
    status, body = raw_http(server.http_url, INFER, request)
    assert status == 200, body
    request["inputs"] += json_request(["", *["y"] * 39], name="TEXT_PAIR")["inputs"]
    status, body = raw_http(server.http_url, INFER, request)
    assert_refused(status, body, "the request has 200039 characters", "at most 200000 in all")


def resident_bytes(pid, field):
    """From Linux's table of a process: VmRSS now, VmHWM the most it ever was."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (kilobytes,) = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(kilobytes) * 1024


@pytest.mark.parametrize("options", [{}, {"truncate": "left"}, {"is_pretokenized": True}])
def test_a_pair_of_the_longest_texts_is_answered_soon_and_in_little_memory(
    server, neighbours, options
):
    text = "的" * 100_000
    if "is_pretokenized" in options:
        text = json.dumps(["a"] * 19_999)  # 5 characters each, and the brackets
    request = json_request([text], **options)
    request["inputs"] += json_request([text], name="TEXT_PAIR")["inputs"]
    request["outputs"] = [{"name": "TRUNCATED"}]
    (tokenizer,) = [stub.pid for stub in running_stubs(server.pid) if stub.model == "tokenizer"]
    before = resident_bytes(tokenizer, "VmRSS")
    answered = neighbours.answered
    began = time.monotonic()
    status, body = raw_http(server.http_url, INFER, request)
    took_s = time.monotonic() - began
    assert status == 200, body
    assert json.loads(body)["outputs"][0]["data"] == [True]
    while neighbours.answered == answered and time.monotonic() - began < 10:
        time.sleep(0.01)
    assert neighbours.answered > answered
    # The library cuts such a pair into 790 x 790 parts of 256 tokens: minutes, tens of gigabytes.
    assert took_s < 10
    assert resident_bytes(tokenizer, "VmHWM") - before < 200e6


def test_too_many_tokens_are_refused_with_limit_and_value(server):
    request = json_request(["fine", "word " * 300], truncate="error")
    status, body = raw_http(server.http_url, INFER, request)
    assert_refused(status, body, "text 1 has 302 tokens", "at most 256")


def test_an_unknown_truncate_is_refused(server):
    status, body = raw_http(server.http_url, INFER, json_request(["a"], truncate="middle"))
    assert_refused(status, body, "truncate is 'middle'", "right, left, error")
    request = json_request(["a"], truncate="right" * 100_000)
    status, body = raw_http(server.http_url, INFER, request)
    assert_refused(status, body, "truncate is 'right", "...", "right, left, error")
    assert len(body) < 300


def test_a_request_that_nobody_waits_for_any_more_is_not_computed(server):
    status, body = raw_http(server.http_url, INFER, json_request(["a"], timeout=1))
    # By the tokenizer while an earlier test's request is computed, else by the encoder.
    assert_refused(status, body, "the server is overloaded", code=503)
    status, _ = raw_http(server.http_url, INFER, json_request(["a"], timeout=10_000_000))
    assert status == 200


def test_more_than_the_maximum_batch_is_refused(server):
    """Triton server's own check, before any model: it names the limit alone."""
    status, body = raw_http(server.http_url, INFER, json_request(["a"] * 65))
    assert_refused(status, body, "batch-size must be <= 64")


def test_a_wrong_type_is_refused(server):
    status, body = raw_http(server.http_url, INFER, json_request([1], datatype="INT32"))
    assert_refused(status, body, "TEXT", "INT32")


@pytest.mark.parametrize("shape", [[2], [1, 2], [2, 1, 1]])
def test_a_wrong_shape_is_refused(server, shape):
    data = ["a"] * int(np.prod(shape))
    status, body = raw_http(server.http_url, INFER, json_request(data, shape=shape))
    assert_refused(status, body, "TEXT")


def test_a_shape_that_does_not_fit_its_data_is_refused(server):
    status, body = raw_http(server.http_url, INFER, json_request(["a"], shape=[2, 1]))
    assert_refused(status, body)


def test_an_unknown_input_is_refused(server):
    status, body = raw_http(server.http_url, INFER, json_request(["a"], name="TXT"))
    assert_refused(status, body, "TXT")


def test_pairs_of_another_count_are_refused(server):
    request = json_request(["a", "b"])
    request["inputs"] += json_request(["c"], name="TEXT_PAIR")["inputs"]
    status, body = raw_http(server.http_url, INFER, request)
    assert_refused(status, body)


def test_pairs_without_texts_are_refused(server):
    request = json_request(["a"], name="TEXT_PAIR")
    status, body = raw_http(server.http_url, INFER, request)
    assert_refused(status, body, "unexpected deadlock, at least one output is not set")


def test_an_unknown_model_is_not_found(server):
    status, body = raw_http(server.http_url, "/v2/models/nothing/infer", json_request(["a"]))
    assert_refused(status, body, "nothing", code=404)


@pytest.mark.parametrize("body", [b"{", b"", b"[]", b'{"inputs": 3}', b"\xff\xfe", b"null"])
def test_malformed_json_is_refused(server, body):
    """Triton server 2.51 answers 500 to what it cannot parse; the message is its own."""
    status, answer = raw_http(server.http_url, INFER, body)
    assert status in (400, 500)
    assert "Traceback" not in answer
    assert json.loads(answer)["error"]


def binary_request(url, raw, count):
    """One BYTES tensor of ``raw`` on the wire, whatever it is."""
    header = json.dumps(
        {
            "inputs": [
                {
                    "name": "TEXT",
                    "shape": [count, 1],
                    "datatype": "BYTES",
                    "parameters": {"binary_data_size": len(raw)},
                }
            ]
        }
    ).encode()
    headers = {"Inference-Header-Content-Length": str(len(header))}
    return raw_http(url, INFER, header + raw, headers)


def packed_bytes(*texts):
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


def test_binary_utf8_is_answered(server):
    status, _ = binary_request(server.http_url, packed_bytes(b"hello", "é".encode()), 2)
    assert status == 200


@pytest.mark.parametrize(
    "text", [b"\xff\xfe", b"ok \xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80"]
)
def test_invalid_utf8_is_refused_with_the_byte(server, text):
    status, body = binary_request(server.http_url, packed_bytes(b"fine", text), 2)
    assert_refused(status, body, "TEXT 1 is not UTF-8", "byte 0x")


@pytest.mark.parametrize(
    ("raw", "count"),
    [
        ((100).to_bytes(4, "little") + b"abc", 1),  # the last string is cut off
        (packed_bytes(b"fine") + (9).to_bytes(4, "little") + b"abc", 2),
        ((2**32 - 1).to_bytes(4, "little") + b"abc", 1),
        (b"\x01\x00", 1),  # not even a length
        (packed_bytes(b"one", b"two"), 1),  # one string too many
        (packed_bytes(b"one"), 2),  # one too few
        (b"", 1),
    ],
)
def test_a_malformed_binary_string_fails_alone(server, raw, count):
    status, body = binary_request(server.http_url, raw, count)
    assert_refused(status, body)


def test_a_truncated_binary_string_among_good_ones_fails_alone(server, known):
    """The hazard of docs/decisions/0003: sent in between 30 good requests at a time, 10 times."""
    with Neighbours(server.http_url, known, threads=8) as crowd:
        for _ in range(10):
            status, body = binary_request(server.http_url, (100).to_bytes(4, "little") + b"abc", 1)
            assert_refused(status, body)
    assert crowd.failures == []


@pytest.mark.parametrize(("texts", "batch"), [(2**32 + 1, [1]), (0, []), (-(2**63), [])])
def test_one_text_is_answered_whose_number_of_texts_is_one_or_none_in_32_bits(server, texts, batch):
    """Triton server 2.51 keeps no more of it; at 0 the answer has no dimension for it."""
    with grpc.insecure_channel(server.grpc_url.removeprefix("grpc://")) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.ModelInferRequest(model_name="text_embedding")
        request.inputs.add(name="TEXT", datatype="BYTES", shape=[texts, 1])
        request.raw_input_contents.append(packed_bytes(b"hello"))
        answer = stub.ModelInfer(request, timeout=TIMEOUT_S)
    shapes = {output.name: list(output.shape) for output in answer.outputs}
    expected = {"EMBEDDING": [384], "TOKEN_COUNT": [1], "TRUNCATED": [1]}
    assert shapes == {name: batch + shape for name, shape in expected.items()}


@pytest.mark.parametrize("raw", [b"", b"\x01", (100).to_bytes(4, "little") + b"abc"])
def test_a_malformed_grpc_tensor_fails_alone(server, raw):
    with grpc.insecure_channel(server.grpc_url.removeprefix("grpc://")) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.ModelInferRequest(model_name="text_embedding")
        request.inputs.add(name="TEXT", datatype="BYTES", shape=[1, 1])
        request.raw_input_contents.append(raw)
        with pytest.raises(grpc.RpcError) as info:
            stub.ModelInfer(request, timeout=TIMEOUT_S)
    assert info.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "Traceback" not in info.value.details()


@pytest.mark.parametrize("protocol", [grpcclient, httpclient], ids=["grpc", "http"])
def test_ids_sent_past_the_tokenizer_are_checked_too(server, protocol):
    url = server.grpc_url if protocol is grpcclient else server.http_url
    client = protocol.InferenceServerClient(url.partition("://")[2])

    def infer(ids, mask=None, types=None):
        arrays = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids) if mask is None else mask,
            "token_type_ids": np.zeros_like(ids) if types is None else types,
        }
        inputs = []
        for name, array in arrays.items():
            tensor = protocol.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(array)
            inputs.append(tensor)
        return client.infer("bert", inputs).as_numpy("EMBEDDING")

    good = np.array([[101, 7592, 102]], dtype=np.int32)
    try:
        assert infer(good).shape == (1, 384)
        for ids, mask, words in (
            (good + 40_000, None, "the model knows 0 to 30521"),
            (good - 40_000, None, "the model knows 0 to 30521"),
            (good, np.zeros_like(good), "text 0 has 0 tokens"),
            (np.ones((1, 257), dtype=np.int32), None, "257 tokens, the model takes at most 256"),
            (good, np.ones((1, 2), dtype=np.int32), "must be the same"),
        ):
            with pytest.raises(InferenceServerException, match=words):
                infer(ids, mask)
    finally:
        client.close()


def test_the_sdk_names_the_text_before_it_sends(client):
    with pytest.raises((InvalidInputError, TypeError), match="1"):
        client.embed(["fine", 3])
    with pytest.raises(InvalidInputError) as info:
        client.embed(["fine", "\ud800"])
    assert info.value.index == 1
