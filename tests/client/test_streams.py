"""embed_iter: bounded, in order or as they come, and nothing left when it is given up."""

import itertools
import time

import numpy as np
import pytest
from bertron_client import DeadlineExceededError, InvalidInputError, OverloadedError, RetryPolicy
from deadlines import ends_within
from fake_triton_model import tokens_of, vector_of, vectors_of

# Twice four requests of eight texts are a window, and at most three windows are under way.
MOST_READ_AHEAD = 4 * 2 * 4 * 8


def test_rows_come_in_order_while_requests_overtake_each_other(client, server):
    server.behaviour.random_delay_s = 0.02
    texts = [f"text {i} " + "x" * (i * 37 % 101) for i in range(300)]
    rows = list(client.embed_iter(texts))
    assert [row.index for row in rows] == list(range(300))
    np.testing.assert_array_equal([row.vector for row in rows], vectors_of(texts))
    assert [row.token_count for row in rows] == [tokens_of(text) for text in texts]
    assert not any(row.truncated for row in rows)
    assert server.behaviour.most_in_flight == 4


def test_rows_come_as_they_arrive(client, server):
    server.behaviour.only_texts_with = "slow"
    server.behaviour.fault, server.behaviour.late_s = "late", 0.3
    texts = ["slow"] + [f"text {i}" for i in range(40)]
    rows = list(client.embed_iter(texts, ordered=False))
    assert sorted(row.index for row in rows) == list(range(41))
    assert 0 not in [row.index for row in rows[:20]]
    for row in rows:
        np.testing.assert_array_equal(row.vector, vector_of(texts[row.index]))


@pytest.mark.parametrize("ordered", [True, False])
def test_an_endless_source_is_read_a_bounded_amount_ahead(client, server, ordered):
    read = 0

    def source():
        nonlocal read
        for read in itertools.count(1):
            yield f"text {read}"

    rows = client.embed_iter(source(), ordered=ordered)
    for taken, row in enumerate(itertools.islice(rows, 300), 1):
        assert read - taken <= MOST_READ_AHEAD
        np.testing.assert_array_equal(row.vector, vector_of(f"text {row.index + 1}"))
    rows.close()
    time.sleep(0.1)
    sent = len(server.behaviour.requests)
    time.sleep(0.1)
    assert len(server.behaviour.requests) == sent


def test_nothing_is_read_or_sent_before_the_first_row_is_wanted(client, server):
    def source():
        raise AssertionError("read too early")
        yield ""

    client.embed_iter(source())
    assert not server.behaviour.arrivals


def test_giving_up_early_leaves_nothing(client, server):
    server.behaviour.random_delay_s = 0.01
    for count in (0, 1, 9, 33):
        rows = client.embed_iter(f"text {i}" for i in itertools.count())
        assert [row.index for row in itertools.islice(rows, count)] == list(range(count))
        rows.close()
    texts = [str(i) for i in range(30)]
    np.testing.assert_array_equal(client.embed(texts), vectors_of(texts))


def test_pairs(client):
    texts, pairs = [f"a {i}" for i in range(50)], [f"b {i}" for i in range(50)]
    rows = client.embed_iter(iter(texts), text_pairs=iter(pairs))
    np.testing.assert_array_equal([row.vector for row in rows], vectors_of(texts, pairs))
    with pytest.raises(InvalidInputError, match="text_pairs ended after 30, one each is wanted"):
        list(client.embed_iter(texts, text_pairs=pairs[:30]))
    with pytest.raises(InvalidInputError, match="texts ended after 30, one each is wanted"):
        list(client.embed_iter(texts[:30], text_pairs=pairs))


def test_an_error_of_the_source_reaches_the_caller(client):
    def source():
        yield from (f"text {i}" for i in range(100))
        raise LookupError("the source has ended badly")

    with pytest.raises(LookupError, match="ended badly"):
        list(client.embed_iter(source()))
    assert len(client.embed(["a"])) == 1


def test_a_bad_text_far_behind_is_named(client):
    texts = [f"text {i}" for i in range(200)]
    texts[150] = None
    with pytest.raises(InvalidInputError, match=r"texts\[150\] is NoneType") as caught:
        list(client.embed_iter(texts))
    assert caught.value.index == 150
    texts[150] = "much too long " * 10
    with pytest.raises(InvalidInputError, match="text 150 has 32 tokens") as caught:
        list(client.embed_iter(texts, truncate="error"))
    assert caught.value.index == 150


def test_a_fault_of_the_server_ends_the_stream(server, protocol, open_client):
    client = open_client(server.url(protocol), retry=RetryPolicy(max_retries=0))
    server.behaviour.fault, server.behaviour.only_texts_with = "busy", "text 99"
    with pytest.raises(OverloadedError):
        list(client.embed_iter(f"text {i}" for i in itertools.count()))
    server.behaviour.fault = None
    assert len(client.embed(["a"])) == 1


def test_the_timeout_is_each_requests(client, server):
    client.embed(["warm"])
    server.behaviour.delay_s = 0.05  # 13 requests at the server, four at a time
    assert len(list(client.embed_iter([str(i) for i in range(100)], timeout_s=0.15))) == 100
    server.behaviour.delay_s, server.behaviour.fault = 0, "never"
    with ends_within(0.3), pytest.raises(DeadlineExceededError, match=r"0\.3 s"):
        list(client.embed_iter([str(i) for i in range(300)], timeout_s=0.3))


def test_a_slow_reader_does_not_run_into_the_timeout(client):
    rows = client.embed_iter((str(i) for i in range(300)), timeout_s=0.2)
    for number, _ in enumerate(rows):
        if number == 100:
            time.sleep(0.3)
    assert number == 299


def test_two_streams_at_once(client):
    firsts = client.embed_iter(f"first {i}" for i in itertools.count())
    seconds = client.embed_iter(f"second {i}" for i in itertools.count())
    for number in range(100):
        first, second = next(firsts), next(seconds)
        np.testing.assert_array_equal(first.vector, vector_of(f"first {number}"))
        np.testing.assert_array_equal(second.vector, vector_of(f"second {number}"))
    firsts.close()
    seconds.close()
