"""ConcurrentBertClient: a bound on what is at the server, and all methods of BertClient."""

import inspect
import threading
import time

import numpy as np
import pytest
from bertron_client import DeadlineExceededError
from bertron_client.bert_as_service import BertClient, ConcurrentBertClient
from fake_triton_server import vector_of


@pytest.fixture
def concurrent(server, protocol, leaks_no_thread):
    with ConcurrentBertClient(max_concurrency=2, url=server.url(protocol), timeout=5000) as opened:
        yield opened


def test_max_concurrency_comes_first_as_in_1_10():
    parameters = inspect.signature(ConcurrentBertClient).parameters
    assert next(iter(parameters)) == "max_concurrency"
    assert parameters["max_concurrency"].default == 10
    with pytest.raises(ValueError, match="max_concurrency is 0, it must be at least 1"):
        ConcurrentBertClient(0)


def test_a_wait_for_a_place_ends_with_the_time_limit(concurrent, server):
    server.behaviour.fault = "never"
    for _ in range(2):
        concurrent.encode(["stuck"], blocking=False)
    while server.behaviour.in_flight < 2:
        time.sleep(0.01)
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError, match=r"all 2 places were taken .* within 0\.2 s"):
        concurrent.encode(["a"], timeout=200)
    assert 0.15 < time.monotonic() - started < 2.2
    server.behaviour.fault = None
    server.behaviour.released.set()
    assert len(concurrent.fetch_all()) == 2
    assert len(concurrent.encode(["a"])) == 1


def test_what_raised_not_implemented_works(concurrent, server):
    server.behaviour.delay_s = 0.02
    for number in range(6):
        concurrent.encode([str(number)], blocking=False)
    expected = [vector_of(str(number)) for number in range(6)]
    np.testing.assert_array_equal(concurrent.fetch_all(concat=True), expected)
    concurrent.encode(["again"], blocking=False)
    (response,) = concurrent.fetch()
    np.testing.assert_array_equal(response.embedding, [vector_of("again")])
    assert len(list(concurrent.encode_async([str(n)] for n in range(6)))) == 6
    assert server.behaviour.most_in_flight == 2


def test_status_is_one_for_all_threads(concurrent):
    threads = [threading.Thread(target=concurrent.encode, args=(["a"],)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert concurrent.status["num_request"] == 4
    assert concurrent.server_config == concurrent.server_config
    assert concurrent.server_status["statistic"]["num_total_seq"] == 4


def test_it_is_a_bert_client(concurrent):
    assert isinstance(concurrent, BertClient)
    with concurrent as entered:
        assert entered is concurrent
