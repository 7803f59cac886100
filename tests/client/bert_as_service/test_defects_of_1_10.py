"""What bert-as-service 1.10's client did wrong must not happen here; one test for each."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from bertron_client import DeadlineExceededError, InvalidInputError, ServerUnavailableError
from bertron_client.bert_as_service import BertClient, ConcurrentBertClient
from fake_triton_server import RawServer, closed_port_url, vector_of

LATE_S = 2.0  # how much later than its time limit a call may end


def test_a_server_that_is_down_is_an_error_and_not_a_hang(protocol):
    started = time.monotonic()
    with BertClient(url=closed_port_url(protocol)) as bc:  # with the default time limit
        with pytest.raises(ServerUnavailableError, match="refused"):
            bc.encode(["a"])
        bc.encode(["a"], blocking=False)
        with pytest.raises(ServerUnavailableError, match="refused"):
            bc.fetch_all()
    assert time.monotonic() - started < 10


def test_a_server_that_never_answers_is_an_error_in_time(protocol):
    with RawServer("never", protocol) as raw:
        started = time.monotonic()
        with BertClient(url=raw.url, timeout=300) as bc:
            for call in (
                lambda: bc.encode(["a"]),
                lambda: bc.server_status,
                lambda: bc.server_config,
            ):
                with pytest.raises(DeadlineExceededError, match=r"0\.3 s"):
                    call()
        assert time.monotonic() - started < 3 * (0.3 + LATE_S)


def test_the_constructor_asks_nothing(server, protocol):
    with BertClient(url=server.url(protocol)), ConcurrentBertClient(url=server.url(protocol)):
        assert not server.behaviour.arrivals
    BertClient("192.0.2.1").close()  # an address where nobody answers


def test_a_late_answer_is_dropped(bc, server):
    bc.encode(["warm"])
    server.behaviour.fault, server.behaviour.late_s = "late", 0.6
    server.behaviour.only_texts_with = "late"
    with pytest.raises(DeadlineExceededError):
        bc.encode(["late 1"], timeout=200)
    bc.encode(["late 2"], blocking=False, timeout=200)
    with pytest.raises(DeadlineExceededError):
        bc.fetch_all()
    time.sleep(0.8)
    assert bc.status["num_pending_request"] == 0
    np.testing.assert_array_equal(bc.encode(["next"]), [vector_of("next")])
    assert bc.fetch_all() == []


def test_after_a_timeout_non_blocking_requests_work(bc, server):
    bc.encode(["warm"])
    server.behaviour.fault, server.behaviour.only_texts_with = "never", "stuck"
    with pytest.raises(DeadlineExceededError):
        bc.encode(["stuck"], timeout=200)
    bc.encode(["fine"], blocking=False)
    (response,) = bc.fetch()
    np.testing.assert_array_equal(response.embedding, [vector_of("fine")])
    server.behaviour.released.set()


def test_a_blocking_call_in_between_takes_no_answer_from_fetch(bc):
    bc.encode(["first"], blocking=False)
    time.sleep(0.2)  # its answer is here
    np.testing.assert_array_equal(bc.encode(["second"]), [vector_of("second")])
    (response,) = bc.fetch()
    np.testing.assert_array_equal(response.embedding, [vector_of("first")])


def test_a_generator_slower_than_delay_loses_nothing(bc):
    def slow():
        for number in range(4):
            time.sleep(0.15)
            yield [str(number)]

    responses = list(bc.encode_async(slow(), delay=0.01))
    found = {response.id: response.embedding for response in responses}
    for number in range(4):
        np.testing.assert_array_equal(found[number + 1], [vector_of(str(number))])


@pytest.mark.parametrize("method", ["fetch", "fetch_all"])
def test_fetching_ends_within_the_time_limit(server, protocol, method):
    server.behaviour.fault = "never"
    with BertClient(url=server.url(protocol), timeout=400) as bc:
        started = time.monotonic()
        for number in range(10):  # more than are sent at a time
            bc.encode([str(number)], blocking=False)
        with pytest.raises(DeadlineExceededError, match=r"0\.4 s"):
            list(getattr(bc, method)())
        assert time.monotonic() - started < 0.4 + LATE_S
        server.behaviour.released.set()


def test_a_request_that_waits_behind_others_ends_within_its_own_limit(bc, server):
    server.behaviour.fault = "never"
    server.behaviour.only_texts_with = "stuck"
    for _ in range(4):
        bc.encode(["stuck"], blocking=False)
    started = time.monotonic()
    bc.encode(["has no turn"], blocking=False, timeout=200)
    with pytest.raises(DeadlineExceededError, match=r"request 5 within 0\.2 s"):
        list(bc.fetch())
    assert time.monotonic() - started < 0.2 + LATE_S
    server.behaviour.released.set()


def test_encode_takes_the_timeout_that_its_documentation_promised(bc, server):
    server.behaviour.fault = "never"
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError, match=r"0\.2 s"):
        bc.encode(["a"], timeout=200)
    assert time.monotonic() - started < 0.2 + LATE_S
    server.behaviour.released.set()


def test_encode_async_and_other_threads_do_not_disturb_each_other(bc, server):
    server.behaviour.random_delay_s = 0.02

    def encode(thread):
        for number in range(10):
            text = f"{thread} {number}"
            np.testing.assert_array_equal(bc.encode([text]), [vector_of(text)])

    def stream(thread):
        batches = ([f"stream {thread} {number}"] for number in range(20))
        expected = {vector_of(f"stream {thread} {n}").tobytes() for n in range(20)}
        found = {response.embedding.tobytes() for response in bc.encode_async(batches)}
        assert found == expected

    with ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(encode, n) for n in range(3)]
        futures += [pool.submit(stream, n) for n in range(3)]
        for future in futures:
            future.result(30)


def test_tokens_are_shown_though_all_checks_are_ignored(server, protocol):
    with BertClient(url=server.url(protocol), ignore_all_checks=True) as bc:
        _, tokens = bc.encode(["one"], show_tokens=True)
    assert tokens == [["[CLS]", "one", "[SEP]"]]


def test_a_blank_text_is_refused_by_its_index_and_not_dropped_on_the_way(bc, server):
    with pytest.raises(InvalidInputError) as caught:
        bc.encode(["one", "two", "", "four"])
    assert caught.value.index == 2
    assert not server.behaviour.requests


def test_full_places_are_waited_for(server, protocol):
    server.behaviour.delay_s = 0.05
    with (
        ConcurrentBertClient(2, url=server.url(protocol)) as bc,
        ThreadPoolExecutor(12) as pool,
    ):
        found = list(pool.map(lambda number: bc.encode([str(number)]), range(12)))
    np.testing.assert_array_equal(np.concatenate(found), [vector_of(str(n)) for n in range(12)])
    assert server.behaviour.most_in_flight == 2


def test_bad_input_never_takes_a_place(server, protocol):
    with ConcurrentBertClient(1, url=server.url(protocol), timeout=2000) as bc:
        for texts in ([], [""], ["x" * 1001], "text"):
            for _ in range(3):
                with pytest.raises((TypeError, ValueError)):
                    bc.encode(texts)
        assert len(bc.encode(["fine"])) == 1


def test_answers_never_go_to_another_client_of_the_same_identity(server, protocol):
    with pytest.warns(UserWarning, match="identity does not share answers"):
        one = BertClient(url=server.url(protocol), identity="twin")
    with pytest.warns(UserWarning, match="identity does not share answers"):
        two = BertClient(url=server.url(protocol), identity="twin")
    with one, two:
        assert one.status["identity"] == two.status["identity"] == "twin"
        one.encode(["for one"], blocking=False)
        two.encode(["for two"], blocking=False)
        np.testing.assert_array_equal(one.fetch_all(concat=True), [vector_of("for one")])
        np.testing.assert_array_equal(two.fetch_all(concat=True), [vector_of("for two")])


def test_a_program_that_never_fetched_can_end():
    """Its threads are daemons; one that waits for a server must not hold up the interpreter."""
    program = (
        "import sys\nfrom bertron_client.bert_as_service import BertClient\n"
        "bc = BertClient(url=sys.argv[1])\n"
        "for _ in range(9): bc.encode(['a'], blocking=False)\n"
        "print('done')\n"
    )
    with RawServer("never", "http") as raw:
        done = subprocess.run(
            [sys.executable, "-c", program, raw.url], capture_output=True, text=True, timeout=30
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"
