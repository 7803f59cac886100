"""What is tried again, how often and how soon."""

import threading
import time
from email.utils import formatdate

import numpy as np
import pytest
from bertron_client import (
    BertronError,
    DeadlineExceededError,
    OverloadedError,
    RetryPolicy,
    ServerUnavailableError,
)
from deadlines import LATE_S
from fake_triton_model import vectors_of
from fake_triton_server import FakeTritonServer, closed_port_url

SOON = RetryPolicy(max_retries=2, first_pause_s=0.01)
PASSING = ["busy", "too_many", "expired", "stopping", "bad_gateway"]
LASTING = ["invalid", "vague", "internal", "forbidden", "nan", "short_data", "missing_output"]


@pytest.fixture
def client(server, protocol, open_client):
    client = open_client(server.url(protocol), retry=SOON, timeout_s=5)
    client.embed(["warm"])
    server.behaviour.requests.clear()
    return client


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_passes_is_not_seen(client, server, fault):
    server.behaviour.fault, server.behaviour.fail_first = fault, 2
    np.testing.assert_array_equal(client.embed(["a"]), vectors_of(["a"]))
    assert len(server.behaviour.requests) == 3


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_stays_is_raised_after_the_last_try(client, server, fault):
    server.behaviour.fault, server.behaviour.fail_first = fault, 3
    with pytest.raises((OverloadedError, ServerUnavailableError)):
        client.embed(["a"])
    assert len(server.behaviour.requests) == 3
    assert len(client.embed(["a"])) == 1


@pytest.mark.parametrize("fault", LASTING)
def test_what_no_repetition_can_mend_is_tried_once(client, server, fault):
    server.behaviour.fault = fault
    with pytest.raises(BertronError):
        client.embed(["a"])
    assert len(server.behaviour.requests) == 1


@pytest.mark.parametrize("fault", ["reset", "close", "cut_off", "cut_chunks"])
def test_a_lost_connection_is_tried_again(server, open_client, fault):
    client = open_client(server.http_url, retry=SOON)
    server.behaviour.fault, server.behaviour.fail_first = fault, 2
    np.testing.assert_array_equal(client.embed(["a"]), vectors_of(["a"]))
    assert len(server.behaviour.requests) == 3


def test_only_what_failed_is_sent_again(client, server):
    texts = [f"text {i}" for i in range(64)]
    server.behaviour.fault, server.behaviour.fail_first = "busy", 2
    np.testing.assert_array_equal(client.embed(texts), vectors_of(texts))
    assert len(server.behaviour.requests) == 8 + 2


def test_streams_and_tokens_are_tried_again_too(client, server):
    texts = [f"text {i}" for i in range(20)]
    server.behaviour.fault, server.behaviour.fail_first = "busy", 2
    rows = list(client.embed_iter(texts))
    np.testing.assert_array_equal([row.vector for row in rows], vectors_of(texts))
    server.behaviour.fail_first = 2
    assert [len(row.tokens) for row in client.tokenize(texts)] == [4] * 20


def test_questions_about_the_model_are_tried_again_too(server, protocol, open_client):
    client = open_client(server.url(protocol), retry=SOON)
    server.behaviour.fault, server.behaviour.fail_first = "stopping", 2
    server.behaviour.fault_strikes = ("config", "statistics")
    assert len(client.embed(["a"])) == 1
    server.behaviour.fail_first = 2
    assert client.statistics()["bert"].inferences == 1


def test_no_retries_when_none_are_wanted(server, protocol, open_client):
    client = open_client(server.url(protocol), retry=RetryPolicy(max_retries=0))
    server.behaviour.fault = "busy"
    with pytest.raises(OverloadedError):
        client.embed(["a"])
    assert len(server.behaviour.requests) == 1


def test_the_server_says_when_to_come_back(client, server):
    server.behaviour.fault, server.behaviour.fail_first = "busy", 1
    server.behaviour.retry_after_s = 0.4
    started = time.monotonic()
    client.embed(["a"])
    assert 0.4 <= time.monotonic() - started < 0.4 + LATE_S


def test_the_time_may_be_a_date(server, open_client):
    client = open_client(server.http_url, retry=SOON)
    server.behaviour.fault, server.behaviour.fail_first = "busy", 1
    server.behaviour.retry_after_s = formatdate(time.time() + 2, usegmt=True)  # whole seconds
    started = time.monotonic()
    client.embed(["a"])
    assert 0.9 <= time.monotonic() - started < 2 + LATE_S


@pytest.mark.parametrize("said", ["soon", "", "nan", "-3", "1e999"])
def test_a_time_that_is_none_does_no_harm(client, server, said):
    server.behaviour.fault, server.behaviour.fail_first = "busy", 1
    server.behaviour.retry_after_s = said
    started = time.monotonic()
    client.embed(["a"])
    assert time.monotonic() - started < LATE_S


def test_a_time_beyond_the_deadline_is_not_waited_for(client, server):
    server.behaviour.fault = "stopping"
    server.behaviour.retry_after_s = 30
    started = time.monotonic()
    with pytest.raises(ServerUnavailableError) as caught:
        client.embed(["a"], timeout_s=2)
    assert time.monotonic() - started < LATE_S
    assert caught.value.retry_after_s == 30
    assert len(server.behaviour.requests) == 1


@pytest.mark.parametrize("count", [1, 40])
def test_retries_end_with_the_deadline(server, protocol, open_client, count):
    retry = RetryPolicy(max_retries=10_000, first_pause_s=0.02, longest_pause_s=0.05)
    client = open_client(server.url(protocol), retry=retry)
    server.behaviour.fault = "busy"
    started = time.monotonic()
    with pytest.raises((OverloadedError, DeadlineExceededError)):
        client.embed([str(i) for i in range(count)], timeout_s=0.5)
    assert 0.3 < time.monotonic() - started < 0.5 + LATE_S
    assert len(server.behaviour.requests) > 5


def test_a_server_that_starts_meanwhile_is_found(protocol, open_client):
    url = closed_port_url(protocol)
    client = open_client(url, retry=RetryPolicy(max_retries=100, first_pause_s=0.02))
    later = FakeTritonServer(**{f"{protocol}_port": int(url.rsplit(":", 1)[1])})
    timer = threading.Timer(0.3, later.__enter__)
    timer.start()
    try:
        assert len(client.embed(["a"], timeout_s=5)) == 1
    finally:
        timer.join()
        client.close()
        later.__exit__(None, None, None)
