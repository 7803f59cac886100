"""Behaviour of Client and AsyncClient, the same over HTTP and gRPC, on loopback."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import numpy as np
import pytest
from bertron_client import Client, InvalidInputError, ProtocolError, RetryPolicy
from bertron_client.testing import MockTransport
from fake_triton_model import MAX_REQUEST_CHARACTERS, vectors_of
from fake_triton_server import EMBEDDING_SIZE, MAX_CHARACTERS, MAX_TOKENS, FakeTritonServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

NEVER = RetryPolicy(max_retries=0)


def test_rows_come_in_the_order_of_the_texts(client):
    texts = [("word " * (7 * i % 23)) + str(i) for i in range(101)]  # 101: not a multiple of 8
    embeddings = client.embed(texts)
    np.testing.assert_array_equal(np.asarray(embeddings), vectors_of(texts))
    assert embeddings.shape == (101, EMBEDDING_SIZE)
    assert embeddings.dtype == np.float32
    words = np.array([len(text.split()) + 2 for text in texts])
    np.testing.assert_array_equal(embeddings.token_counts, np.minimum(words, MAX_TOKENS))
    np.testing.assert_array_equal(embeddings.truncated, words > MAX_TOKENS)
    assert embeddings.token_counts.dtype == np.int32


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    pairs=st.lists(st.tuples(st.text(max_size=60), st.text(max_size=9)), max_size=40),
    has_pairs=st.booleans(),
    max_batch_size=st.integers(1, 11),
    random_delay_s=st.sampled_from([0, 0.002]),
)
def test_any_list_in_any_split_gives_each_text_its_own_row(
    client, server, pairs, has_pairs, max_batch_size, random_delay_s
):
    server.behaviour.max_batch_size = max_batch_size
    server.behaviour.random_delay_s = random_delay_s
    client.server_info()  # learns the new size
    texts = [text for text, _ in pairs]
    seconds = [pair for _, pair in pairs] if has_pairs else None
    embeddings = client.embed(texts, text_pairs=seconds)
    np.testing.assert_array_equal(embeddings, vectors_of(texts, seconds))
    rows = list(client.embed_iter(texts, text_pairs=seconds))
    assert [row.index for row in rows] == list(range(len(texts)))
    for row in client.embed_iter(texts, text_pairs=seconds, ordered=False):
        np.testing.assert_array_equal(row.vector, embeddings[row.index])
        np.testing.assert_array_equal(row.vector, rows[row.index].vector)


def test_requests_keep_to_the_characters_that_the_server_takes(client, server):
    texts = ["x" * MAX_CHARACTERS] * 7
    client.embed(texts)
    client.tokenize(texts)
    assert len(list(client.embed_iter(texts))) == 7
    sizes = [sum(map(len, request.texts)) for request in server.behaviour.requests]
    assert max(sizes) == MAX_REQUEST_CHARACTERS
    assert sum(sizes) == 3 * 7 * MAX_CHARACTERS


def test_requests_are_even_and_group_texts_of_similar_length(client, server):
    texts = ["a" * (i % 17 + 1) for i in range(34)]
    client.embed(texts)
    sizes = sorted(len(request.texts) for request in server.behaviour.requests)
    assert sizes == [6, 7, 7, 7, 7]  # five requests of at most 8
    spans = sorted(
        (min(map(len, request.texts)), max(map(len, request.texts)))
        for request in server.behaviour.requests
    )
    assert all(spans[i][1] <= spans[i + 1][0] for i in range(len(spans) - 1))


def test_several_requests_are_in_flight_and_no_more_than_allowed(server, protocol, open_client):
    server.behaviour.delay_s = 0.05
    client = open_client(server.url(protocol), max_requests_in_flight=3)
    client.embed([str(i) for i in range(64)])
    assert server.behaviour.most_in_flight == 3


def test_one_text_is_one_request_and_the_limits_are_asked_for_once(client, server):
    for _ in range(3):
        client.embed(["hello"])
    assert len(server.behaviour.requests) == 3
    assert server.behaviour.config_requests == 1
    assert len(server.behaviour.arrivals) == 4


@pytest.mark.parametrize(
    "collection",
    [list, tuple, np.array, lambda texts: (text for text in texts)],
    ids=["list", "tuple", "array", "generator"],
)
def test_collections_of_texts(client, collection):
    texts = ["one", "two words", "three of them"]
    np.testing.assert_array_equal(client.embed(collection(texts)), vectors_of(texts))


def test_no_texts_give_no_rows(client, server):
    assert client.embed([]).shape == (0, EMBEDDING_SIZE)
    assert client.embed(iter(())).token_counts.shape == (0,)
    assert list(client.embed_iter([])) == []
    assert client.tokenize([]) == []
    assert not server.behaviour.requests


def test_texts_cross_unchanged(client):
    texts = ["", "\0", "a\nb\r\n", "żółw 龟 🐢", "\ufeff", "a" * MAX_CHARACTERS, "é", "e\u0301"]
    np.testing.assert_array_equal(client.embed(texts), vectors_of(texts))


def test_parameters_reach_the_server(client, server):
    client.embed(["hello"], truncate="left", timeout_s=2)
    parameters = server.behaviour.requests[0].parameters
    assert parameters["truncate"] == "left"
    assert 1_000_000 < parameters["timeout"] <= 2_000_000  # microseconds left


def test_tokens_stand_as_they_are_given(client, server):
    tokens = [["New York", "is", "big"], [], ['"quoted"', "żółw"]]
    embeddings = client.embed(tokens, is_pretokenized=True)
    np.testing.assert_array_equal(embeddings, vectors_of([" ".join(text) for text in tokens]))
    np.testing.assert_array_equal(embeddings.token_counts, [5, 2, 4])
    rows = list(client.embed_iter(tokens, is_pretokenized=True))
    np.testing.assert_array_equal([row.vector for row in rows], embeddings)


def test_vectors_are_cut_and_then_brought_to_length_1(client):
    whole = vectors_of(["one", "two"])
    np.testing.assert_array_equal(client.embed(["one", "two"], dimensions=5), whole[:, :5])
    cut = whole[:, :5] / np.linalg.norm(whole[:, :5], axis=1, keepdims=True)
    embeddings = client.embed(["one", "two"], dimensions=5, normalize=True)
    np.testing.assert_allclose(embeddings, cut, rtol=1e-6)
    rows = list(client.embed_iter(["one", "two"], dimensions=5, normalize=True))
    np.testing.assert_array_equal([row.vector for row in rows], embeddings)
    with pytest.raises(ValueError, match="dimensions is 17"):
        client.embed(["one"], dimensions=17)


@pytest.mark.parametrize("texts", ["a single text", b"bytes", None, 3, {"a", "b"}, {"a": "b"}])
def test_what_is_no_list_of_texts_is_a_type_error(client, texts):
    with pytest.raises(TypeError, match="texts"):
        client.embed(texts)
    with pytest.raises(TypeError, match="texts"):
        client.tokenize(texts)
    with pytest.raises(TypeError, match="texts"):
        list(client.embed_iter(texts))


@pytest.mark.parametrize(
    ("texts", "index", "words"),
    [
        (["fine", None], 1, "texts[1] is NoneType"),
        (["fine", "fine", b"x"], 2, "texts[2] is bytes"),
        (["fine", "ab\ud800"], 1, "texts[1] holds the lone surrogate U+D800 at character 2"),
        (["a" * (MAX_CHARACTERS + 1)], 0, "texts[0] has 1001 characters, the server takes at most"),
    ],
)
def test_a_bad_text_is_named_and_nothing_is_sent(client, server, texts, index, words):
    for method in (client.embed, client.tokenize, lambda texts: list(client.embed_iter(texts))):
        with pytest.raises(InvalidInputError) as caught:
            method(texts)
        assert caught.value.index == index
        assert words in str(caught.value)
    assert not server.behaviour.requests


def test_bad_options_are_named(client):
    with pytest.raises(InvalidInputError, match=r"truncate is 'middle', one of right, left, error"):
        client.embed(["a"], truncate="middle")
    with pytest.raises(InvalidInputError, match="2 text_pairs came with 1 texts"):
        client.embed(["a"], text_pairs=["b", "c"])
    for timeout_s in (0, -1, float("nan"), float("inf"), 1e9):
        with pytest.raises(ValueError, match="timeout_s is"):
            client.embed(["a"], timeout_s=timeout_s)


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:8001", "ftp://x:1", "http://", "http://x:99999", "http://x:1/v2", "", "grpc:x"],
)
def test_a_wrong_url_says_what_is_wanted(style, open_client, url):
    with pytest.raises(ValueError, match=r"http://, https://, grpc:// or grpcs://HOST:PORT is"):
        open_client(url)


def test_the_index_of_a_refused_text_is_the_callers(client):
    texts = [f"short {i}" for i in range(50)]
    texts[37] = "much too long " * 10
    for method in (client.embed, client.tokenize):
        with pytest.raises(InvalidInputError) as caught:
            method(texts, truncate="error")
        assert caught.value.index == 37
        assert str(caught.value).startswith("text 37 has 32 tokens, the model takes at most 12;")


def test_a_model_changed_under_the_client_is_learnt_after_one_error(client, server):
    client.embed(["a"])
    server.behaviour.embedding_size = 4
    with pytest.raises(ProtocolError, match=r"EMBEDDING is FP32 \[1, 4\], FP32 \[1, 16\] is wante"):
        client.embed(["a"])
    assert client.embed(["a"]).shape == (1, 4)
    server.behaviour.max_batch_size = 2
    with pytest.raises(InvalidInputError, match="batch-size must be <= 2"):
        client.embed(list("abcdef"))
    assert client.embed(list("abcdef")).shape == (6, 4)


def test_ready(client, server):
    assert client.is_ready()
    server.behaviour.is_ready = False
    assert not client.is_ready()
    threading.Timer(0.3, setattr, (server.behaviour, "is_ready", True)).start()
    started = time.monotonic()
    client.wait_until_ready(5)
    assert 0.2 < time.monotonic() - started < 2


def test_a_server_that_comes_back_is_found(protocol, open_client):
    with FakeTritonServer() as first:
        url = first.url(protocol)
        client = open_client(url)
        client.embed(["a"])
    assert not client.is_ready(timeout_s=1)
    with FakeTritonServer(**{f"{protocol}_port": int(url.rsplit(":", 1)[1])}):
        client.wait_until_ready(5)
        assert len(client.embed(["a"])) == 1


def test_a_kept_connection_that_the_server_closed_is_replaced_without_an_error(server, open_client):
    client = open_client(server.http_url, retry=NEVER)
    server.behaviour.close_after_answer = True
    for number in range(5):
        client.embed([str(number)])
        time.sleep(0.02)  # the server's end is closed by now
    assert len(server.behaviour.requests) == 5


def test_connections_are_kept(client, server, protocol):
    for number in range(20):
        client.embed([str(number)])
    if protocol == "http":
        assert server.behaviour.connections_accepted == 1


def test_rows_belong_to_their_texts_with_32_threads(client, server):
    server.behaviour.random_delay_s = 0.005

    def work(thread):
        for number in range(2, 4):
            texts = [f"{thread} {number} {i} " + "x" * (i * 31 % 50) for i in range(1 + number * 7)]
            np.testing.assert_array_equal(client.embed(texts), vectors_of(texts))

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(work, range(32)))


def test_calls_after_close_say_so(client):
    client.embed(["a"])
    client.close()
    client.close()
    for method in (
        lambda: client.embed(["a"]),
        lambda: list(client.embed_iter(["a"])),
        lambda: client.tokenize(["a"]),
        client.is_ready,
        client.server_info,
        client.statistics,
    ):
        with pytest.raises(RuntimeError, match="the client is closed"):
            method()


def test_a_closed_client_closes_its_channel(server):
    with Client(server.grpc_url) as client:
        client.embed(["a"])
        channel = client._transport._channel
    live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
    with pytest.raises(ValueError, match="closed channel"):
        live(b"", timeout=5)


def test_nothing_is_left_after_close(server, protocol, style, open_client):
    """What the fixtures assert for each test, with more to leave behind."""
    for _ in range(5):
        client = open_client(server.url(protocol))
        client.embed([str(i) for i in range(40)])
        client.close()


def test_the_constructor_touches_no_network(open_client):
    open_client("grpc://192.0.2.1:1")
    open_client("http://no-such-host.invalid")


def test_import_is_light():
    program = (
        "import sys, bertron_client; "
        "print([m for m in ('torch', 'transformers', 'triton', 'gevent', 'grpc', 'tqdm') "
        "if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_test_double_that_has_run_out_of_answers_is_an_error(open_client):
    def client_of(*answers):
        transport = MockTransport(Mock(side_effect=answers), embedding_size=8)
        return open_client("http://mock", transport=transport)

    client = client_of(np.ones((1, 8)))
    client.embed(["a"])
    with pytest.raises(RuntimeError, match="raised StopIteration"):
        client.embed(["a"])
    client = client_of(np.ones((64, 8)))
    with pytest.raises(RuntimeError, match="raised StopIteration"):
        client.embed([str(i) for i in range(128)])  # two requests at the same time
