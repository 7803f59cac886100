"""`encode_async`: all answers, a bounded number ahead, errors to the consumer, nothing left."""

import itertools
import threading
import time

import numpy as np
import pytest
from bertron_client import DeadlineExceededError, ServerError
from bertron_client.bert_as_service import BertClient
from bertron_client.bert_as_service._client import MAX_SENDERS, MAX_UNFETCHED
from fake_triton_server import vector_of


def counted(batches, seen):
    """The batches, each noted in ``seen`` as it is read."""
    for batch in batches:
        seen.append(batch)
        yield batch


def endless():
    return ([str(number)] for number in itertools.count())


def test_every_batch_is_answered_once(bc, server):
    server.behaviour.random_delay_s = 0.02
    batches = [[f"{n} {row}" for row in range(1 + n % 11)] for n in range(30)]
    responses = list(bc.encode_async(iter(batches)))
    assert sorted(response.id for response in responses) == list(range(1, 31))
    for response in responses:
        expected = np.stack([vector_of(text) for text in batches[response.id - 1]])
        np.testing.assert_array_equal(response.embedding, expected)


def test_a_list_of_batches_will_do(bc):
    assert len(list(bc.encode_async([["a"], ["b"]]))) == 2
    assert list(bc.encode_async([])) == []


def test_no_more_is_read_than_max_num_batch(bc):
    source = endless()
    assert len(list(bc.encode_async(source, max_num_batch=5))) == 5
    assert next(source) == ["5"]  # the user's generator goes on where it was left
    assert len(list(bc.encode_async([["a"], ["b"]], max_num_batch=0))) == 2  # 0: all, as in 1.10
    with pytest.raises(ValueError, match="max_num_batch is -1"):
        bc.encode_async(endless(), max_num_batch=-1)


def test_the_generator_is_read_a_bounded_number_ahead(bc, server):
    seen = []
    responses = bc.encode_async(counted(endless(), seen))
    for fetched in range(1, 4):
        next(responses)
        deadline = time.monotonic() + 5
        while len(seen) < fetched + MAX_UNFETCHED and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)  # for one too many
        assert len(seen) == fetched + MAX_UNFETCHED
    responses.close()


def test_an_answer_does_not_wait_for_the_next_batch(bc):
    asked = threading.Semaphore(1)

    def live():
        for number in range(3):
            assert asked.acquire(timeout=5)  # only once the answer before is here
            yield [str(number)]

    found = []
    for response in bc.encode_async(live()):
        found.append(response.id)
        asked.release()
    assert found == [1, 2, 3]


def test_an_error_of_the_generator_comes_behind_its_answers(bc):
    def broken():
        yield ["one"]
        yield ["two"]
        raise LookupError("no more texts")

    responses = bc.encode_async(broken())
    assert {next(responses).id, next(responses).id} == {1, 2}
    with pytest.raises(LookupError, match="no more texts"):
        next(responses)


@pytest.mark.parametrize(
    ("batch", "error"), [("no list", TypeError), ([], ValueError), (["a", ""], ValueError)]
)
def test_a_bad_batch_is_an_error_of_the_generator(bc, batch, error):
    responses = bc.encode_async([["fine"], batch, ["never sent"]])
    assert next(responses).id == 1
    with pytest.raises(error):
        next(responses)
    assert list(responses) == []


def test_a_failed_request_ends_it(bc, server):
    server.behaviour.fault, server.behaviour.only_texts_with = "internal", "3"
    with pytest.raises(ServerError):
        list(bc.encode_async(endless()))


def test_each_batch_has_its_time_limit(bc, server):
    bc.encode(["warm"])
    server.behaviour.fault, server.behaviour.only_texts_with = "never", "3"
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        list(bc.encode_async(endless(), timeout=300))
    assert 0.25 < time.monotonic() - started < 3
    server.behaviour.released.set()
    with pytest.raises(ValueError, match="timeout is 0"):
        bc.encode_async(endless(), timeout=0)


def test_options_are_those_of_encode(bc):
    (response,) = bc.encode_async([[["a", "b"]]], is_tokenized=True, show_tokens=True)
    assert response.tokens == [["[CLS]", "a", "b", "[SEP]"]]
    np.testing.assert_array_equal(response.embedding, [vector_of("a b")])


def test_it_takes_nothing_from_fetch_and_nothing_from_another(bc):
    bc.encode(["pending"], blocking=False)
    streams = [bc.encode_async([[f"{name} {n}"] for n in range(6)]) for name in "ab"]
    found = {"a": [], "b": []}
    for pair in zip(*streams):
        for name, response in zip("ab", pair):
            found[name].append(response.embedding)
    for name, vectors in found.items():
        expected = {vector_of(f"{name} {n}").tobytes() for n in range(6)}
        assert {vector.tobytes() for vector in vectors} == expected
    np.testing.assert_array_equal(bc.fetch_all(concat=True), [vector_of("pending")])


def test_closing_early_ends_its_thread(bc, server):
    server.behaviour.delay_s = 0.02
    for how in ("close", "break", "forget"):
        seen = []
        responses = bc.encode_async(counted(endless(), seen))
        next(responses)
        if how == "close":
            responses.close()
        elif how == "break":
            for _ in responses:
                break
        del responses
        _wait_for_no_reader()
        count = len(seen)
        time.sleep(0.1)
        assert len(seen) == count


def test_a_batch_that_comes_after_the_end_is_not_sent(bc, server):
    is_asked, is_closed = threading.Event(), threading.Event()

    def slow():
        yield ["first"]
        is_asked.set()
        is_closed.wait(5)
        yield ["too late"]

    responses = bc.encode_async(slow())
    next(responses)
    assert is_asked.wait(5)
    responses.close()
    is_closed.set()
    _wait_for_no_reader()
    time.sleep(0.1)
    assert [request.texts for request in server.behaviour.requests] == [["first"]]


def test_a_batch_behind_stuck_ones_ends_within_its_own_limit(bc, server):
    server.behaviour.fault, server.behaviour.only_texts_with = "never", "stuck"
    for _ in range(MAX_SENDERS):
        bc.encode(["stuck"], blocking=False)

    is_over = threading.Event()

    def slow():
        time.sleep(0.2)  # the consumer waits already, for nothing that has a limit
        yield ["has no turn"]
        is_over.wait(10)

    started = time.monotonic()
    with pytest.raises(DeadlineExceededError, match=r"within 0\.2 s"):
        list(bc.encode_async(slow(), timeout=200))
    assert time.monotonic() - started < 3
    is_over.set()
    server.behaviour.released.set()


def test_it_reads_nothing_before_the_first_next(bc):
    seen = []
    responses = bc.encode_async(counted(endless(), seen))
    time.sleep(0.1)
    assert not seen
    del responses
    _wait_for_no_reader()


def test_closing_the_client_ends_it(server, protocol, leaks_no_thread):
    bc = BertClient(url=server.url(protocol))
    responses = bc.encode_async(endless())
    next(responses)
    bc.close()
    started = time.monotonic()
    with pytest.raises((RuntimeError, ConnectionError)):
        for _ in responses:
            pass
    assert time.monotonic() - started < 5


def _wait_for_no_reader():
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if not any(thread.name == "bertron-encode-async" for thread in threading.enumerate()):
            return
        time.sleep(0.01)
    pytest.fail("the thread that reads the generator is still there")
