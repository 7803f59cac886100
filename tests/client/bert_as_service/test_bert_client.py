"""BertClient has 1.10's interface: arguments, results, checks, and what may be fetched when."""

import inspect
import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from bertron_client import InvalidInputError, ServerError
from bertron_client.bert_as_service import BertClient, PoolingStrategy, Response
from bertron_client.bert_as_service._client import MAX_SENDERS
from fake_triton_server import (
    MAX_CHARACTERS,
    MAX_TOKENS,
    VERSION,
    closed_port_url,
    vector_of,
)


def rows_of(*texts):
    """[B, E] that the server answers; a pair is a tuple."""
    return np.stack([vector_of(*([text] if isinstance(text, str) else text)) for text in texts])


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        (
            BertClient.__init__,
            "ip port port_out output_fmt show_server_config identity check_version check_length "
            "check_token_info ignore_all_checks timeout",
        ),
        (BertClient.encode, "texts blocking is_tokenized show_tokens"),
        (BertClient.encode_async, "batch_generator max_num_batch delay"),
        (BertClient.fetch, "delay"),
        (BertClient.fetch_all, "sort concat"),
    ],
)
def test_the_arguments_are_those_of_1_10_in_their_order(method, arguments):
    parameters = inspect.signature(method).parameters.values()
    by_position = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert by_position[1:] == arguments.split()


def test_each_text_has_its_row(bc):
    texts = [f"text number {number}" for number in range(21)]  # three requests of at most 8
    vectors = bc.encode(texts)
    assert type(vectors) is np.ndarray
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, rows_of(*texts))


def test_output_fmt_list_gives_lists(server, protocol):
    with BertClient(url=server.url(protocol), output_fmt="list") as bc:
        vectors = bc.encode(["one", "two"])
        assert vectors == rows_of("one", "two").tolist()
        bc.encode(["one"], blocking=False)
        bc.encode(["two", "three"], blocking=False)
        assert bc.fetch_all(concat=True) == rows_of("one", "two", "three").tolist()


@pytest.mark.parametrize(
    ("text", "read_as"),
    [
        ("who ||| me", ("who", "me")),
        ("a ||| b ||| c", ("a ||| b", "c")),  # the last separator splits
        ("  a ||| b ", ("a", "b")),
        ("a ||| ", "a ||| "),  # no second text
        (" ||| b", " ||| b"),
        ("a|||b", "a|||b"),  # blanks are part of the separator
        ("a ||| b\nc", "a ||| b\nc"),  # nor across lines
    ],
)
def test_a_pair_is_what_1_10_took_for_one(bc, server, text, read_as):
    np.testing.assert_array_equal(bc.encode([text]), rows_of(read_as))


def test_pairs_and_single_texts_keep_their_rows(bc):
    vectors, tokens = bc.encode(["a ||| b", "c", "d ||| e", "f g"], show_tokens=True)
    np.testing.assert_array_equal(vectors, rows_of(("a", "b"), "c", ("d", "e"), "f g"))
    assert tokens == [
        ["[CLS]", "a", "[SEP]", "b", "[SEP]"],
        ["[CLS]", "c", "[SEP]"],
        ["[CLS]", "d", "[SEP]", "e", "[SEP]"],
        ["[CLS]", "f", "g", "[SEP]"],
    ]


def test_tokens_are_taken_as_they_stand(bc, server):
    batch = [["my", "##s", "el", "f"], ["a", "|||", "b", "|||", "c"], ["a", "|||"]]
    vectors, tokens = bc.encode(batch, is_tokenized=True, show_tokens=True)
    np.testing.assert_array_equal(vectors, rows_of("my ##s el f", ("a", "b ||| c"), "a"))
    assert tokens[0] == ["[CLS]", "my", "##s", "el", "f", "[SEP]"]
    assert tokens[1] == ["[CLS]", "a", "[SEP]", "b", "|||", "c", "[SEP]"]  # the first one splits
    assert all(request.is_pretokenized for request in server.behaviour.requests)


@pytest.mark.parametrize(
    ("texts", "is_tokenized", "error", "words"),
    [
        ("a text", False, TypeError, "texts is a str, a list is wanted"),
        (("a", "b"), False, TypeError, "texts is a tuple"),
        (np.array(["a"]), False, TypeError, "texts is a ndarray"),
        (["a", 3], False, TypeError, r"texts\[1\] is a int"),
        ([["a"]], False, TypeError, r"texts\[0\] is a list"),
        ([], False, ValueError, "texts is empty"),
        (["a", ""], False, ValueError, r"texts\[1\] is ''"),
        (["a", "b", " \t"], False, ValueError, r"texts\[2\] is ' \\t'"),
        (["a"], True, TypeError, r"texts\[0\] is a str, a list is wanted"),
        ([["a"], []], True, ValueError, r"texts\[1\] is empty"),
        ([["a"], ["b", " "]], True, ValueError, r"texts\[1\]\[1\] is ' '"),
        ([["a"], ["b", 3]], True, TypeError, r"texts\[1\]\[1\] is a int"),
    ],
)
@pytest.mark.parametrize("blocking", [True, False])
def test_what_1_10_refused_is_refused_before_it_is_sent(
    bc, server, texts, is_tokenized, error, words, blocking
):
    with pytest.raises(error, match=words) as caught:
        bc.encode(texts, blocking=blocking, is_tokenized=is_tokenized)
    if error is ValueError and len(texts):
        assert caught.value.index == len(texts) - 1
    assert not server.behaviour.requests
    assert bc.fetch_all() == []


def test_a_text_is_named_by_its_place_in_a_mixed_batch(bc):
    texts = ["a ||| b", "c", "d ||| e", "x" * (MAX_CHARACTERS + 1)]
    with pytest.raises(InvalidInputError, match=r"texts?\W3\b") as caught:
        bc.encode(texts)
    assert caught.value.index == 3


def test_cut_texts_are_warned_of(bc, server, protocol):
    texts = ["short", "long " * MAX_TOKENS, "long " * (MAX_TOKENS + 1)]
    with pytest.warns(UserWarning, match="2 of 3 texts are longer .* the first is text 1") as seen:
        bc.encode(texts)
    assert [warning.filename for warning in seen] == [__file__]
    bc.encode(texts, blocking=False)
    with pytest.warns(UserWarning, match="2 of 3 texts") as seen:
        list(bc.fetch())
    assert [warning.filename for warning in seen] == [__file__]
    with BertClient(url=server.url(protocol), check_length=False) as unchecked:
        unchecked.encode(texts)
    with BertClient(url=server.url(protocol), ignore_all_checks=True) as unchecked:
        unchecked.encode(texts)


def test_the_address_is_made_of_ip_port_and_protocol():
    for arguments, port in (
        ({}, 8001),
        ({"protocol": "http"}, 8000),
        ({"ip": "10.0.0.1", "port": 5555, "port_out": 5556}, 5555),
        ({"url": "http://10.0.0.1:80"}, 80),
        ({"url": "https://10.0.0.1"}, 443),
    ):
        with BertClient(**arguments) as bc:
            assert bc.status["port"] == port
            assert bc.status["server_ip"] == ("10.0.0.1" if "10" in str(arguments) else "localhost")
            assert bc.status["port_out"] == 5556
    with BertClient("::1") as bc:
        assert bc.status["server_ip"] == "::1"


def test_arguments_of_the_client_below_are_passed_on():
    from bertron_client.testing import MockTransport

    with BertClient(url="http://mock", transport=MockTransport(embedding_size=3)) as bc:
        assert bc.encode(["a", "b"]).shape == (2, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"output_fmt": "tensor"}, AttributeError, "output_fmt is 'tensor', one of ndarray, list"),
        ({"protocol": "zmq"}, ValueError, "protocol is 'zmq', one of grpc, http"),
        ({"timeout": 0}, ValueError, "timeout is 0, it must be more than 0"),
        ({"timeout": -2}, ValueError, "timeout is -2"),
        ({"timeout": float("nan")}, ValueError, "timeout is nan"),
        ({"timeout": 1e12}, ValueError, "at most 86400000 ms, or -1 for that"),
        ({"no_such_argument": 1}, TypeError, "no_such_argument"),
    ],
)
def test_a_wrong_argument_says_what_is_wanted(arguments, error, words):
    with pytest.raises(error, match=words):
        BertClient(**arguments)


def test_for_ever_is_the_longest_time_there_is(server, protocol):
    with BertClient(url=server.url(protocol), timeout=-1) as bc:
        assert bc.encode(["a"], timeout=-1).shape == bc.encode(["a"]).shape
        assert bc.status["timeout"] == -1


def test_status_has_the_keys_of_1_10(bc):
    bc.encode(["a"])
    bc.encode(["b"], blocking=False)
    status = bc.status
    assert set(status) == {
        *("identity", "num_request", "num_pending_request", "pending_request", "output_fmt"),
        *("port", "port_out", "server_ip", "client_version", "timeout"),
    }
    assert status["num_request"] == 2
    assert status["num_pending_request"] == 1
    assert status["pending_request"] == {2}
    assert status["timeout"] == 10_000
    (response,) = bc.fetch()
    assert response.id == 2
    assert bc.status["num_pending_request"] == 0


def test_server_config_has_what_the_server_says_and_no_more(bc, server):
    assert bc.server_config == {
        "server_version": VERSION,
        "max_batch_size": 8,
        "max_seq_len": MAX_TOKENS,
        "pooling_strategy": PoolingStrategy.REDUCE_MEAN,
        "fp16": False,
        "cpu": True,
        "show_tokens_to_client": True,
    }
    assert json.loads(json.dumps(bc.server_config))["pooling_strategy"] == 2  # 1.10's number

    def forget(config):
        for name in ("dtype", "pooling", "max_tokens_per_text"):
            config["parameters"].pop(name, None)
        config.pop("instance_group", None)

    server.behaviour.edit_config = forget
    assert set(bc.server_config) == {"server_version", "max_batch_size", "show_tokens_to_client"}


def test_server_status_counts_requests_and_texts(bc):
    assert bc.server_status["statistic"] == {"num_data_request": 0, "num_total_seq": 0}
    bc.encode(["a", "b", "c"])
    bc.encode(["d"])
    status = bc.server_status
    assert {name: status[name] for name in bc.server_config} == bc.server_config
    assert status["statistic"] == {
        "num_data_request": 2,
        "num_total_seq": 4,
        "avg_size_per_request": 2.0,
    }


def test_show_server_config_asks_at_once(server, protocol, capsys):
    with BertClient(url=server.url(protocol), show_server_config=True):
        printed = capsys.readouterr().out
    assert "max_seq_len = 12" in printed
    assert "pooling_strategy = REDUCE_MEAN" in printed
    started = time.monotonic()
    with pytest.raises(ConnectionError):
        BertClient(url=closed_port_url(protocol), show_server_config=True)
    assert time.monotonic() - started < 5


def test_fetch_is_in_order_of_arrival(bc, server):
    server.behaviour.fault, server.behaviour.only_texts_with = "never", "slow"
    bc.encode(["slow"], blocking=False)
    bc.encode(["quick", "too"], blocking=False)
    responses = bc.fetch()
    found = [next(responses)]
    bc.encode(["last"], blocking=False)
    found.append(next(responses))
    server.behaviour.released.set()
    found += responses
    assert [response.id for response in found] == [2, 3, 1]
    expected = [rows_of("quick", "too"), rows_of("last"), rows_of("slow")]
    for response, vectors in zip(found, expected):
        assert type(response) is Response
        assert response.tokens == ""
        np.testing.assert_array_equal(response.embedding, vectors)


@pytest.mark.parametrize("sort", [True, False])
def test_fetch_all_is_in_order_of_sending_or_of_arrival(bc, server, sort):
    server.behaviour.fault, server.behaviour.only_texts_with = "late", "slow"
    bc.encode(["slow"], blocking=False)
    bc.encode(["quick"], blocking=False)
    expected = rows_of("slow", "quick") if sort else rows_of("quick", "slow")
    np.testing.assert_array_equal(bc.fetch_all(sort=sort, concat=True), expected)


def test_fetch_all_joins_what_was_sent(bc):
    for number in range(5):
        bc.encode([f"{number} {row}" for row in range(number + 1)], blocking=False)
    texts = [f"{number} {row}" for number in range(5) for row in range(number + 1)]
    np.testing.assert_array_equal(bc.fetch_all(concat=True), rows_of(*texts))
    assert bc.fetch_all() == []
    assert bc.fetch_all(concat=True) == []


def test_tokens_come_with_the_response(bc):
    bc.encode(["one two"], blocking=False, show_tokens=True)
    (response,) = bc.fetch(delay=0.01)
    assert response.tokens == [["[CLS]", "one", "two", "[SEP]"]]


def test_a_failed_request_raises_once_and_the_others_are_fetched(bc, server):
    server.behaviour.fault = "internal"
    server.behaviour.only_texts_with = "bad"
    for text in ("good 1", "bad", "good 2"):
        bc.encode([text], blocking=False)
    seen, errors = set(), []
    while bc.status["pending_request"]:
        try:
            seen.update(response.id for response in bc.fetch())
        except ServerError as error:
            errors.append(error)
    assert seen == {1, 3}
    assert len(errors) == 1
    if sys.version_info >= (3, 11):  # notes are new in it
        assert "request 2 of this client" in errors[0].__notes__[0]


def test_fetch_all_is_all_or_nothing(bc, server):
    server.behaviour.fault = "internal"
    server.behaviour.only_texts_with = "bad"
    for text in ("good 1", "bad", "good 2"):
        bc.encode([text], blocking=False)
    with pytest.raises(ServerError):
        bc.fetch_all()
    bc.encode(["later"], blocking=False)
    np.testing.assert_array_equal(bc.fetch_all(concat=True), rows_of("later"))


def test_two_threads_that_fetch_share_the_answers(bc, server):
    server.behaviour.delay_s = 0.01
    for number in range(40):
        bc.encode([str(number)], blocking=False)
    with ThreadPoolExecutor(2) as pool:
        halves = list(pool.map(lambda _: list(bc.fetch()), range(2)))
    ids = [response.id for half in halves for response in half]
    assert sorted(ids) == list(range(1, 41))


def test_a_bounded_number_of_batches_is_at_the_server(bc, server):
    server.behaviour.delay_s = 0.02
    for number in range(20):
        bc.encode([str(number)], blocking=False)
    assert len(bc.fetch_all()) == 20
    assert server.behaviour.most_in_flight == MAX_SENDERS


def test_threads_that_share_a_client_get_their_own_rows(bc, server):
    server.behaviour.random_delay_s = 0.01

    def work(thread):
        for number in range(8):
            texts = [f"{thread} {number} {row}" for row in range(1 + (thread + number) % 10)]
            np.testing.assert_array_equal(bc.encode(texts), rows_of(*texts))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))


def test_a_closed_client_says_so_and_leaves_nothing_behind(server, protocol, leaks_no_thread):
    bc = BertClient(url=server.url(protocol))
    bc.encode(["a"])
    server.behaviour.delay_s = 1.0
    for _ in range(8):
        bc.encode(["pending"], blocking=False)
    started = time.monotonic()
    bc.close()
    bc.close()
    assert time.monotonic() - started < 0.8  # it waits for nobody
    assert bc.fetch_all() == []
    for blocking in (True, False):
        with pytest.raises(RuntimeError, match="the client is closed"):
            bc.encode(["a"], blocking=blocking)
    time.sleep(1.2)
    assert len(server.behaviour.requests) <= 1 + MAX_SENDERS  # the rest was never sent


def test_a_thread_that_fetches_ends_when_the_client_is_closed(server, protocol):
    bc = BertClient(url=server.url(protocol))
    server.behaviour.fault = "never"
    bc.encode(["a"], blocking=False)
    thread = threading.Thread(target=lambda: list(bc.fetch()), daemon=True)
    thread.start()
    time.sleep(0.1)
    bc.close()
    thread.join(2)
    assert not thread.is_alive()
