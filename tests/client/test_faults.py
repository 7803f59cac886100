"""What a caller gets when the server is wrong, slow or gone, and how soon."""

import threading
import time

import numpy as np
import pytest
from bertron_client import (
    BertronError,
    Client,
    DeadlineExceededError,
    InvalidInputError,
    ModelNotFoundError,
    OverloadedError,
    ProtocolError,
    ServerError,
    ServerUnavailableError,
)
from fake_triton_server import RawServer, closed_port_url, vector_of

LATE_S = 0.5  # how much later than its deadline a call may end


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("busy", OverloadedError, "Exceeds maximum queue size"),
        ("expired", OverloadedError, "Request timeout expired"),
        ("stopping", ServerUnavailableError, "Server is stopping"),
        ("internal", ServerError, "the forward failed"),
        ("invalid", InvalidInputError, "text 0 is not to my liking"),
        ("vague", InvalidInputError, "something is not right"),
        ("nan", ProtocolError, "EMBEDDING row 0 of 1 holds values that are not finite"),
        ("wrong_count", ProtocolError, "EMBEDDING is FP32 [0, 16], FP32 [1, 16] is wanted"),
        ("wrong_dtype", ProtocolError, "EMBEDDING is FP64 [1, 16], FP32 [1, 16] is wanted"),
        ("short_data", ProtocolError, "EMBEDDING [1, 16] has 60 bytes, 64 are wanted"),
        ("missing_output", ProtocolError, "the answer has no TOKEN_COUNT, only ['EMBEDDING']"),
    ],
)
def test_each_fault_has_its_error(client, server, protocol, fault, kind, words):
    server.behaviour.fault = fault
    with pytest.raises(BertronError) as caught:
        client.embed(["hello"])
    assert type(caught.value) is kind
    assert words in str(caught.value)
    assert f"model 'text_embedding' at {server.url(protocol)}" in str(caught.value)
    server.behaviour.fault = None
    np.testing.assert_array_equal(client.embed(["hello"])[0], vector_of("hello"))


def test_errors_are_also_the_standard_ones():
    assert issubclass(DeadlineExceededError, TimeoutError)
    assert issubclass(ServerUnavailableError, ConnectionError)
    assert issubclass(InvalidInputError, ValueError)


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("not_json", ProtocolError, "not a KServe v2 inference answer"),
        ("cut_off", ServerUnavailableError, "the connection ended after 9 bytes"),
        ("huge", ProtocolError, "larger than 67108864 bytes"),
        ("reset", ServerUnavailableError, "model 'text_embedding' at"),
    ],
)
def test_faults_of_http_itself(server, fault, kind, words):
    with Client(server.http_url) as client:
        client.embed(["hello"])
        server.behaviour.fault = fault
        with pytest.raises(kind, match=words):
            client.embed(["hello"])
        server.behaviour.fault = None
        client.embed(["hello"])


def test_an_unknown_model_is_named(server, protocol):
    with Client(server.url(protocol), model="nobody") as client:
        with pytest.raises(ModelNotFoundError, match="model 'nobody' at"):
            client.embed(["a"])
        assert not client.is_ready()


def test_nobody_listens(protocol):
    url = closed_port_url(protocol)
    with Client(url) as client:
        started = time.monotonic()
        with pytest.raises(ServerUnavailableError, match="refused") as caught:
            client.embed(["a"])
        assert url in str(caught.value)
        assert time.monotonic() - started < 2
        assert not client.is_ready()


def test_an_unknown_host(protocol):
    with (
        Client(f"{protocol}://no-such-host.invalid:1", timeout_s=2) as client,
        pytest.raises((ServerUnavailableError, DeadlineExceededError)),
    ):
        client.embed(["a"])


@pytest.mark.parametrize("fault", ["never", "trickle"])
def test_no_call_outlives_its_deadline_below_the_protocol(protocol, fault):
    with RawServer(fault, protocol) as raw, Client(raw.url) as client:
        for method in (
            lambda: client.embed(["a"], timeout_s=0.4),
            lambda: client.server_info(timeout_s=0.4),
            lambda: client.wait_until_ready(0.4),
        ):
            started = time.monotonic()
            with pytest.raises(DeadlineExceededError, match=r"0\.4 s"):
                method()
            assert 0.3 < time.monotonic() - started < 0.4 + LATE_S
        started = time.monotonic()
        assert not client.is_ready(timeout_s=0.2)
        assert time.monotonic() - started < 0.2 + LATE_S


@pytest.mark.parametrize("fault", ["garbage", "reset", "close"])
def test_a_peer_that_is_no_triton_server(protocol, fault):
    with RawServer(fault, protocol) as raw, Client(raw.url) as client:
        started = time.monotonic()
        with pytest.raises((ProtocolError, ServerUnavailableError)) as caught:
            client.embed(["a"], timeout_s=3)
        assert time.monotonic() - started < 3 + LATE_S
        assert raw.url in str(caught.value)
        if protocol == "http" and fault == "garbage":
            assert type(caught.value) is ProtocolError


@pytest.mark.parametrize("count", [1, 40])  # one request, several at once
def test_no_call_outlives_its_deadline_when_the_model_does_not_answer(client, server, count):
    client.embed(["warm"])
    server.behaviour.fault = "never"
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError, match=r"no complete answer within 0\.4 s"):
        client.embed([str(i) for i in range(count)], timeout_s=0.4)
    assert 0.35 < time.monotonic() - started < 0.4 + LATE_S
    server.behaviour.released.set()
    server.behaviour.fault = None
    client.embed(["fine again"])


def test_a_wait_in_the_queue_that_ends_with_the_deadline_is_a_deadline_error(client, server):
    client.embed(["warm"])
    server.behaviour.fault = "expired"
    server.behaviour.delay_s = 0.45
    with pytest.raises(DeadlineExceededError):
        client.embed(["a"], timeout_s=0.5)


def test_the_deadline_is_for_all_requests_together(client, server):
    client.embed(["warm"])
    server.behaviour.delay_s = 0.15  # 13 requests, 4 at a time: 0.6 s
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        client.embed([str(i) for i in range(100)], timeout_s=0.3)
    assert time.monotonic() - started < 0.3 + LATE_S


def test_a_failed_request_ends_the_call_without_waiting_for_the_others(client, server):
    texts = [f"text number {i}" for i in range(40)]
    client.embed(texts)
    server.behaviour.fault = "never"
    server.behaviour.only_texts_with = "number 7"
    threading.Timer(0.3, setattr, (server.behaviour, "fault", "invalid")).start()
    texts += ["short number 7"] * 8
    started = time.monotonic()
    with pytest.raises(BertronError):
        client.embed(["x " * 200] * 8 + texts, truncate="error", timeout_s=8)
    assert time.monotonic() - started < 2


def test_the_wait_for_a_server_names_the_last_fault():
    with (
        Client(closed_port_url("http")) as client,
        pytest.raises(DeadlineExceededError, match=r"not ready within 0\.3 s: .*refused") as caught,
    ):
        client.wait_until_ready(0.3)
    assert isinstance(caught.value.__cause__, ServerUnavailableError)
