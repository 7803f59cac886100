"""Every way to ask, over real sockets, and what kind of end each error is."""

import subprocess
import sys

import numpy as np
import pytest
from bertron_loadtest.callers import CALLERS, open_caller, outcome_of
from bertron_loadtest.samples import Outcome
from fake_triton_server import (
    FakeTritonServer,
    RawServer,
    closed_port_url,
    tokens_of,
    vector_of,
)

KSERVE = ("grpc", "http", "raw-grpc", "raw-http")
TEXTS = ["The ferry leaves at six.", "A second text", "and one more"]


@pytest.fixture
def server():
    with FakeTritonServer() as running:
        yield running


def opened(server, name, timeout_s=5.0):
    urls = {"grpc": server.grpc_url, "http": server.http_url}
    return open_caller(name, urls, "text_embedding", timeout_s)


def outcome(caller):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one is what is asked
        caller.embed(TEXTS)
    return outcome_of(caught.value)


@pytest.mark.parametrize("name", KSERVE)
@pytest.mark.parametrize("count", [1, 3, 20])  # the last is more than the server takes at once
def test_each_gives_rows_in_order_and_tokens(server, name, count):
    texts = [f"{TEXTS[0]} {number}" for number in range(count)]
    caller = opened(server, name)
    answer = caller.embed(texts)
    caller.close()
    np.testing.assert_allclose(answer.vectors, [vector_of(text) for text in texts], atol=1e-6)
    assert answer.tokens == sum(min(tokens_of(text), 12) for text in texts)


@pytest.mark.parametrize("name", KSERVE)
@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("busy", Outcome.REFUSED),
        ("expired", Outcome.REFUSED),
        ("stopping", Outcome.DISCONNECTED),
        ("internal", Outcome.FAILED),
        ("invalid", Outcome.FAILED),
        ("never", Outcome.TIMED_OUT),
    ],
)
def test_each_error_is_of_one_kind_whatever_the_way(server, name, fault, expected):
    caller = opened(server, name, timeout_s=1.0)
    caller.embed(TEXTS)
    server.behaviour.fault = fault
    assert outcome(caller) is expected
    caller.close()


@pytest.mark.parametrize("name", KSERVE)
def test_a_refusal_is_not_tried_again(server, name):
    caller = opened(server, name)
    caller.embed(TEXTS)
    server.behaviour.fault, server.behaviour.fail_first = "busy", 1
    before = len(server.behaviour.requests)
    assert outcome(caller) is Outcome.REFUSED
    assert len(server.behaviour.requests) == before + 1
    caller.close()


@pytest.mark.parametrize("name", CALLERS)
def test_a_server_that_is_not_there_or_hangs_up_is_disconnected(name):
    scheme = CALLERS[name].scheme
    urls = {scheme: closed_port_url(scheme)}
    if name.startswith("raw-"):  # they ask for the model's limits first
        with pytest.raises(Exception) as caught:  # noqa: PT011
            open_caller(name, urls, "text_embedding", 2.0)
        assert outcome_of(caught.value) is Outcome.DISCONNECTED
        return
    caller = open_caller(name, urls, "text_embedding", 2.0)
    assert outcome(caller) is Outcome.DISCONNECTED
    caller.close()
    with RawServer("reset", scheme) as server:
        caller = open_caller(name, {scheme: server.url}, "text_embedding", 2.0)
        assert outcome(caller) is Outcome.DISCONNECTED
        caller.close()


@pytest.mark.parametrize("name", CALLERS)
def test_each_kind_has_a_locust_user(name):
    # In a process of its own: importing Locust replaces this one's sockets and threads.
    code = (
        "import sys; from bertron_loadtest import users; "
        "print(getattr(users, sys.argv[1]).caller_name)"
    )
    command = [sys.executable, "-c", code, CALLERS[name].user]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == name, done.stderr
