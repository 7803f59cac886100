"""What the client asks besides embeddings: tokens, what is served, and how it does."""

import numpy as np
import pytest
from bertron_client import ModelStatistics, ProtocolError, ServerInfo
from fake_triton_model import (
    MAX_CHARACTERS,
    MAX_REQUEST_CHARACTERS,
    MAX_TOKENS,
    VERSION,
    id_of,
    tokenize,
)


def test_tokens_of_many_texts(client, server):
    texts = ["", "one", "  two   words ", "żółw 龟", *(f"{i} " * (i % 15) + "x" for i in range(60))]
    rows = client.tokenize(texts)
    assert len(rows) == len(texts)
    for text, row in zip(texts, rows):
        wanted = tokenize(text)
        assert row.tokens == wanted.tokens
        assert row.ids.tolist() == list(map(id_of, wanted.tokens))
        assert row.type_ids.tolist() == wanted.type_ids
        assert row.offsets.tolist() == [list(pair) for pair in wanted.offsets]
        assert row.truncated == wanted.is_truncated
        assert [array.dtype for array in (row.ids, row.type_ids, row.offsets)] == [np.int32] * 3
        assert row.offsets.shape == (len(row), 2)
    assert {request.model for request in server.behaviour.requests} == {"tokenizer"}


def test_tokens_of_pairs_and_of_tokens(client):
    (row,) = client.tokenize(["a b"], text_pairs=["c"])
    assert row.tokens == ["[CLS]", "a", "b", "[SEP]", "c", "[SEP]"]
    assert row.type_ids.tolist() == [0, 0, 0, 0, 1, 1]
    (row,) = client.tokenize([["New York", "x"]], is_pretokenized=True)
    assert row.tokens == ["[CLS]", "New York", "x", "[SEP]"]


def test_a_long_text_is_cut_at_the_end_that_was_asked_for(client):
    text = " ".join(map(str, range(30)))
    (right,) = client.tokenize([text])
    (left,) = client.tokenize([text], truncate="left")
    assert right.truncated
    assert left.truncated
    assert right.tokens[1:-1] == [str(i) for i in range(10)]
    assert left.tokens[1:-1] == [str(i) for i in range(20, 30)]


def test_server_info(client, server, protocol):
    assert client.server_info() == ServerInfo(
        url=server.url(protocol),
        server_version=VERSION,
        model="text_embedding",
        model_versions=("1",),
        models=("tokenizer", "bert"),
        tokenizer="tokenizer",
        embedding_size=16,
        max_batch_size=8,
        max_tokens_per_text=MAX_TOKENS,
        max_characters_per_text=MAX_CHARACTERS,
        max_characters_per_request=MAX_REQUEST_CHARACTERS,
        dtype="float32",
        device="cpu",
        pooling="mean",
        normalized=True,
    )


def test_server_info_is_of_the_server_that_is_there_now(client, server):
    assert client.server_info().max_batch_size == 8
    server.behaviour.max_batch_size = 3  # as after a restart
    assert client.server_info().max_batch_size == 3


def test_what_the_server_does_not_say_is_none(client, server):
    def forget(config):
        for key in ("parameters", "ensemble_scheduling", "instance_group"):
            config.pop(key, None)

    server.behaviour.edit_config = forget
    info = client.server_info()
    assert info.embedding_size == 16
    assert info.models == ()
    for name in ("tokenizer", "max_tokens_per_text", "dtype", "device", "pooling", "normalized"):
        assert getattr(info, name) is None, name
    assert len(client.embed(["a" * 2000])) == 1
    with pytest.raises(ProtocolError, match="no tokenizer"):
        client.tokenize(["a"])


def test_a_gpu_is_named(client, server):
    def move(config):
        if config["name"] == "bert":
            config["instance_group"] = [{"name": "bert", "kind": "KIND_GPU", "count": 2}]

    server.behaviour.edit_config = move
    assert client.server_info().device == "gpu"


@pytest.mark.parametrize(
    "edit",
    [
        lambda config: config["output"].clear(),
        lambda config: config["output"].pop(0),
        lambda config: config["output"][0].update(dims=[-1]),
        lambda config: config.update(max_batch_size=0),
        lambda config: config["parameters"].update(max_tokens_per_text={"string_value": "many"}),
    ],
)
def test_a_model_of_another_kind_is_refused(client, server, edit):
    server.behaviour.edit_config = edit
    for method in (client.server_info, lambda: client.embed(["a"])):
        with pytest.raises(ProtocolError):
            method()


def test_statistics_follow_from_the_requests(client, server):
    client.embed(["a"])
    client.embed(["b", "c"])
    client.embed(["d", "e"])
    client.tokenize(["f"])
    server.behaviour.fault = "invalid"
    with pytest.raises(ValueError, match="not to my liking"):
        client.embed(["g"])
    statistics = client.statistics()
    assert list(statistics) == ["text_embedding", "tokenizer", "bert"]
    assert statistics["bert"] == ModelStatistics(
        inferences=5,
        executions=3,
        requests_succeeded=3,
        requests_failed=0,
        queue_ms=1.0,
        compute_ms=2.5,
        batch_sizes={1: 1, 2: 2},
    )
    assert statistics["tokenizer"].batch_sizes == {1: 2, 2: 2}
    assert statistics["text_embedding"].requests_failed == 1


def test_statistics_of_a_server_that_has_done_nothing(server, protocol, open_client):
    client = open_client(server.url(protocol))
    assert client.statistics()["bert"] == ModelStatistics(0, 0, 0, 0, 0.0, 0.0, {})


def test_numbers_may_be_strings(server, open_client):
    server.behaviour.numbers_as_strings = True
    client = open_client(server.http_url)
    client.embed(["a", "b"])
    assert client.statistics()["bert"].batch_sizes == {2: 1}
