"""HTTP in all its right forms, and in many wrong ones, for both clients."""

import numpy as np
import pytest
from bertron_client import (
    BertronError,
    DeadlineExceededError,
    ProtocolError,
    RetryPolicy,
    ServerUnavailableError,
)
from deadlines import ends_within
from fake_triton_http import MANNERS
from fake_triton_http_faults import FAULTS
from fake_triton_model import vectors_of

NEVER = RetryPolicy(max_retries=0)
RIGHT_IN_THE_END = None

EXPECTED = {
    "not_json": (ProtocolError, "not a KServe v2 inference answer"),
    "truncated_json": (ProtocolError, "not a KServe v2 inference answer"),
    "wrong_header_length": (ProtocolError, "not a KServe v2 inference answer"),
    "duplicate": (RIGHT_IN_THE_END, ""),
    "content_length_too_short": (ProtocolError, "not a KServe v2 inference answer"),
    "content_length_too_long": (DeadlineExceededError, "within 0.3 s"),
    "late_body": (DeadlineExceededError, "within 0.3 s"),
    "cut_off": (ServerUnavailableError, "the connection ended after 9 bytes"),
    "close": (ServerUnavailableError, "the connection was closed without an answer"),
    "reset": (ServerUnavailableError, "model 'text_embedding' at"),
    "huge": (ProtocolError, "larger than 67108864 bytes"),
    "broken_chunks": (ProtocolError, "a chunk's size is b'no number'"),
    "cut_chunks": (ServerUnavailableError, "the connection ended after"),
    "broken_gzip": (ProtocolError, "its gzip data are cut off"),
    "wrong_gzip": (ProtocolError, "its gzip data are broken"),
    "gzip_bomb": (ProtocolError, "larger than 67108864 bytes"),
    "drip": (DeadlineExceededError, "within 0.3 s"),
    "drip_head": (DeadlineExceededError, "within 0.3 s"),
    "endless_head": (ProtocolError, "its head is larger than"),
    "endless_interim": ((ProtocolError, DeadlineExceededError), ""),
}


@pytest.fixture
def client(server, open_client):
    return open_client(server.http_url, retry=NEVER, timeout_s=5)


@pytest.mark.parametrize("manner", MANNERS)
def test_each_right_manner_is_accepted(client, server, manner):
    server.behaviour.http_manner = manner
    texts = [f"text {i}" for i in range(30)]
    for _ in range(3):
        np.testing.assert_array_equal(client.embed(texts), vectors_of(texts))
    assert client.is_ready()
    assert client.server_info().tokenizer == "tokenizer"
    if manner not in ("connection_close", "http_1_0", "no_length"):
        assert server.behaviour.connections_accepted <= 4


@pytest.mark.parametrize("fault", FAULTS)
def test_each_wrong_answer_has_its_error_and_spoils_no_other(client, server, fault):
    kind, words = EXPECTED[fault]
    np.testing.assert_array_equal(client.embed(["before"]), vectors_of(["before"]))
    server.behaviour.fault = fault
    server.behaviour.only_texts_with = "wrong"
    server.behaviour.late_s = 0.4
    allowed_s = 5.0 if fault == "gzip_bomb" else 0.3  # 64 MiB of its 4 GiB are unpacked
    for number in range(2):
        text = f"wrong {number}"
        with ends_within(allowed_s):
            if kind is RIGHT_IN_THE_END:
                np.testing.assert_array_equal(client.embed([text]), vectors_of([text]))
            else:
                with pytest.raises(BertronError) as caught:
                    client.embed([text], timeout_s=0.3)
                assert isinstance(caught.value, kind)
                assert words in str(caught.value)
        for again in range(2):
            text = f"after {number} {again}"
            np.testing.assert_array_equal(client.embed([text]), vectors_of([text]))


def test_a_wrong_answer_among_many_ends_the_call_and_nothing_else(client, server):
    texts = [f"text {i}" for i in range(64)]
    server.behaviour.only_texts_with = "text 33"
    for fault in ("cut_off", "reset", "not_json", "duplicate", "broken_gzip", "late_body"):
        server.behaviour.fault = fault
        if fault != "duplicate":
            with pytest.raises(BertronError):
                client.embed(texts, timeout_s=0.4)
        server.behaviour.fault = None
        np.testing.assert_array_equal(client.embed(texts), vectors_of(texts))


def test_answers_are_compressed_when_asked_for(server, open_client):
    texts = ["word " * 190 + str(i) for i in range(5)]
    for compression in (None, "gzip"):
        client = open_client(server.http_url, compression=compression)
        np.testing.assert_array_equal(client.embed(texts), vectors_of(texts))
    seen = [request.headers for request in server.behaviour.requests]
    assert [headers.get("content-encoding") for headers in seen] == [None, "gzip"]
    assert [headers.get("accept-encoding") for headers in seen] == [None, "gzip"]
