"""What a caller gets when the server is wrong, slow or gone, and how soon."""

import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from bertron_client import (
    AuthenticationError,
    BertronError,
    DeadlineExceededError,
    InvalidInputError,
    ModelNotFoundError,
    OverloadedError,
    ProtocolError,
    RetryPolicy,
    ServerError,
    ServerUnavailableError,
)
from deadlines import LATE_S, ends_within
from fake_triton_model import vector_of, vectors_of
from fake_triton_server import RawServer, closed_port_url

NEVER = RetryPolicy(max_retries=0)


@pytest.fixture
def client(server, protocol, open_client):
    return open_client(server.url(protocol), timeout_s=10, retry=NEVER)


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("busy", OverloadedError, "Exceeds maximum queue size"),
        ("too_many", OverloadedError, "too many requests"),
        ("expired", OverloadedError, "Request timeout expired"),
        ("full", OverloadedError, "the server is overloaded: 9 tokens wait"),
        ("stopping", ServerUnavailableError, "Server is stopping"),
        ("bad_gateway", ServerUnavailableError, "no healthy upstream"),
        ("internal", ServerError, "the forward failed"),
        ("invalid", InvalidInputError, "text 0 is not to my liking"),
        ("vague", InvalidInputError, "something is not right"),
        ("forbidden", AuthenticationError, "not for you"),
        ("nan", ProtocolError, "EMBEDDING row 0 of 1 holds values that are not finite"),
        ("wrong_count", ProtocolError, "EMBEDDING is FP32 [0, 16], FP32 [1, 16] is wanted"),
        ("too_many_rows", ProtocolError, "EMBEDDING is FP32 [2, 16], FP32 [1, 16] is wanted"),
        ("wrong_dtype", ProtocolError, "EMBEDDING is FP64 [1, 16], FP32 [1, 16] is wanted"),
        ("short_data", ProtocolError, "EMBEDDING [1, 16] has 60 bytes, 64 are wanted"),
        ("missing_output", ProtocolError, "the answer has no TOKEN_COUNT, only ['EMBEDDING']"),
        ("huge", ProtocolError, "larger than"),
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


def test_an_unknown_model_is_named(server, protocol, open_client):
    client = open_client(server.url(protocol), model="nobody")
    with pytest.raises(ModelNotFoundError, match="model 'nobody' at"):
        client.embed(["a"])
    assert not client.is_ready()


def test_nobody_listens(protocol, open_client):
    url = closed_port_url(protocol)
    client = open_client(url, retry=NEVER)
    started = time.monotonic()
    with pytest.raises(ServerUnavailableError, match=r"refused|Connect call failed") as caught:
        client.embed(["a"])
    assert url in str(caught.value)
    assert time.monotonic() - started < 2
    assert not client.is_ready()


def test_an_unknown_host(protocol, open_client):
    client = open_client(f"{protocol}://no-such-host.invalid:1", timeout_s=2)
    with ends_within(2), pytest.raises((ServerUnavailableError, DeadlineExceededError)):
        client.embed(["a"])


@pytest.mark.parametrize("fault", ["never", "trickle"])
def test_no_call_outlives_its_deadline_below_the_protocol(protocol, open_client, fault):
    def timed(method):
        started = time.monotonic()
        with pytest.raises(DeadlineExceededError, match=r"0\.4 s"):
            method()
        return time.monotonic() - started

    with RawServer(fault, protocol) as raw:
        client = open_client(raw.url)
        methods = (
            lambda: client.embed(["a"], timeout_s=0.4),
            lambda: list(client.embed_iter(["a"], timeout_s=0.4)),
            lambda: client.tokenize(["a"], timeout_s=0.4),
            lambda: client.server_info(timeout_s=0.4),
            lambda: client.statistics(timeout_s=0.4),
            lambda: client.wait_until_ready(0.4),
        )
        with ThreadPoolExecutor(len(methods)) as pool:
            for took_s in pool.map(timed, methods):
                assert 0.3 < took_s < 0.4 + LATE_S
        with ends_within(0.2):
            assert not client.is_ready(timeout_s=0.2)
        client.close()


@pytest.mark.parametrize("fault", ["garbage", "reset", "close"])
def test_a_peer_that_is_no_triton_server(protocol, open_client, fault):
    with RawServer(fault, protocol) as raw:
        client = open_client(raw.url)
        with (
            ends_within(3),
            pytest.raises((ProtocolError, ServerUnavailableError)) as caught,
        ):
            client.embed(["a"], timeout_s=3)
        assert raw.url in str(caught.value)
        if protocol == "http" and fault == "garbage":
            assert type(caught.value) is ProtocolError
        client.close()


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
    with ends_within(0.3), pytest.raises(DeadlineExceededError):
        client.embed([str(i) for i in range(100)], timeout_s=0.3)


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


def test_an_answer_that_comes_too_late_is_nobodys(client, server):
    """Calls that are given up all the time, and none of the others gets one of their rows."""
    client.embed(["warm"])
    server.behaviour.fault = "late"
    server.behaviour.late_s = 0.12
    server.behaviour.only_texts_with = "late"
    for number in range(4):
        with pytest.raises(DeadlineExceededError):
            client.embed([f"late {number}"], timeout_s=0.1)
        for again in range(3):
            texts = [f"prompt {number} {again} {i}" for i in range(20)]
            np.testing.assert_array_equal(client.embed(texts), vectors_of(texts))


def test_a_failed_call_keeps_no_memory_until_the_collector_comes(client, server):
    """An error that is in a cycle with the frames it passed keeps all the texts of its call."""

    def errors():
        # By type(): isinstance asks objects for their __class__, and some warn when they are asked.
        return [found for found in gc.get_objects() if issubclass(type(found), BertronError)]

    server.behaviour.fault = "invalid"
    gc.collect()
    others = {id(error): error for error in errors()}  # of other tests
    gc.disable()
    try:
        for count in (1, 40):
            try:
                client.embed([f"text {i}" for i in range(count)])
            except BertronError:
                continue
        left = [error for error in errors() if id(error) not in others]
    finally:
        gc.enable()
    assert not left


def test_the_wait_for_a_server_names_the_last_fault(protocol, open_client):
    client = open_client(closed_port_url(protocol))
    with pytest.raises(
        DeadlineExceededError, match=r"not ready within 0\.3 s: .*(refused|Connect call failed)"
    ) as caught:
        client.wait_until_ready(0.3)
    assert isinstance(caught.value.__cause__, ServerUnavailableError)
