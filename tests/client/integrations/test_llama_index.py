import asyncio
import pickle

import numpy as np
import pytest
from bertron_client import AsyncClient, Client, InvalidInputError
from bertron_client.integrations.llama_index import BertronEmbedding
from fake_triton_server import vector_of
from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import TextNode

TEXTS = [f"text number {number}" for number in range(20)]  # three requests of the server


@pytest.fixture
def model(server, protocol):
    opened = BertronEmbedding(server.url(protocol), timeout_s=10)
    yield opened
    opened.close()


def expected(texts):
    return [vector_of(text).tolist() for text in texts]


def test_queries_texts_and_batches(model, server):
    assert isinstance(model, BaseEmbedding)
    assert model.get_query_embedding("a") == vector_of("a").tolist()
    assert model.get_text_embedding("b") == vector_of("b").tolist()
    assert model.get_text_embedding_batch(TEXTS) == expected(TEXTS)
    assert len(server.behaviour.requests) == 2 + 3  # one call of the client for the batch
    assert model.get_text_embedding_batch([]) == []
    mean = model.get_agg_embedding_from_queries(["a", "b"])
    np.testing.assert_allclose(mean, (vector_of("a") + vector_of("b")) / 2, rtol=1e-5)


def test_queries_texts_and_batches_asynchronously(model):
    async def embed():
        try:
            return [
                await model.aget_query_embedding("a"),
                await model.aget_text_embedding("b"),
                *await model.aget_text_embedding_batch(TEXTS),
            ]
        finally:
            await model.aclose()

    assert asyncio.run(embed()) == expected(["a", "b", *TEXTS])


def test_only_some_asynchronous_calls_are_under_way_at_a_time(server):
    server.behaviour.delay_s = 0.02
    texts = [str(number) for number in range(80)]
    model = BertronEmbedding(server.http_url, embed_batch_size=8)  # ten calls of one request each

    async def embed():
        try:
            return await model.aget_text_embedding_batch(texts)
        finally:
            await model.aclose()

    assert asyncio.run(embed()) == expected(texts)
    assert server.behaviour.most_in_flight == 2


def test_options(server):
    with Client(server.http_url) as client:
        model = BertronEmbedding(
            client=client,
            truncate="left",
            dimensions=4,
            normalize=True,
            query_instruction="query: ",
            text_instruction="passage: ",
        )
        for row, text in (
            (model.get_query_embedding("x"), "query: x"),
            (model.get_text_embedding("y"), "passage: y"),
            (model.get_text_embedding_batch(["z"])[0], "passage: z"),
            (asyncio.run(model.aget_query_embedding("x")), "query: x"),
            (asyncio.run(model.aget_text_embedding("y")), "passage: y"),
        ):
            vector = vector_of(text)[:4]
            np.testing.assert_allclose(row, vector / np.linalg.norm(vector), rtol=1e-5)
        assert {r.parameters["truncate"] for r in server.behaviour.requests} == {"left"}


def test_who_closes_what(server):
    async def with_async_client():
        async with AsyncClient(server.http_url) as client:
            model = BertronEmbedding(async_client=client)
            await model.aclose()
            assert await model.aget_text_embedding("a") == vector_of("a").tolist()

    asyncio.run(with_async_client())
    with Client(server.http_url) as client:
        model = BertronEmbedding(client=client)
        model.close()
        assert model.get_text_embedding("a") == vector_of("a").tolist()
    model = BertronEmbedding(server.http_url)
    model.close()
    with pytest.raises(RuntimeError, match="the client is closed"):
        model.get_text_embedding("a")


def test_wrong_arguments_are_refused_at_once(server):
    with pytest.raises(TypeError, match="neither url nor client"):
        BertronEmbedding()
    with pytest.raises(TypeError, match="no_such_option"):
        BertronEmbedding(server.http_url, no_such_option=1)
    with pytest.raises(ValueError, match="embed_batch_size"):
        BertronEmbedding(server.http_url, embed_batch_size=0)


def test_errors_are_the_clients(model):
    with pytest.raises(InvalidInputError) as caught:
        model.get_text_embedding_batch(["fine", "ab\ud800"])
    assert caught.value.index == 1


def test_a_token_is_not_written_out(server):
    model = BertronEmbedding(server.http_url, token="secret-1", num_workers=3, dimensions=4)  # noqa: S106
    data = model.to_dict()
    for form in (str(data), model.to_json(), repr(model), str(model.to_payload())):
        assert "secret-1" not in form
    assert (data["class_name"], data["model_name"]) == ("BertronEmbedding", "text_embedding")
    copy = BertronEmbedding.from_dict(data, token="secret-2")  # noqa: S106
    assert (copy.num_workers, copy.dimensions) == (3, 4)
    copy.get_text_embedding("a")
    assert server.behaviour.requests[-1].headers["authorization"] == "Bearer secret-2"
    model.close()
    copy.close()


def test_it_can_be_pickled_with_a_url(server):
    model = BertronEmbedding(server.http_url, model="text_embedding", token="secret", dimensions=4)  # noqa: S106
    copy = pickle.loads(pickle.dumps(model))  # noqa: S301
    np.testing.assert_array_equal(copy.get_text_embedding("a"), vector_of("a")[:4])
    assert server.behaviour.requests[-1].headers["authorization"] == "Bearer secret"
    model.close()
    copy.close()
    with Client(server.http_url) as client, pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(BertronEmbedding(client=client))


def test_an_index_finds_the_node(model):
    nodes = [TextNode(text=text) for text in TEXTS]
    index = VectorStoreIndex(nodes, embed_model=model)
    best, other = index.as_retriever(similarity_top_k=2).retrieve(TEXTS[7])
    assert best.node.get_content() == TEXTS[7]
    assert best.score == pytest.approx(1, abs=1e-6)
    assert other.score < 0.99

    async def search():
        try:
            return await index.as_retriever(similarity_top_k=1).aretrieve(TEXTS[3])
        finally:
            await model.aclose()

    assert [found.node.get_content() for found in asyncio.run(search())] == [TEXTS[3]]


def test_an_ingestion_pipeline_embeds_nodes(model):
    nodes = IngestionPipeline(transformations=[model]).run(
        nodes=[TextNode(text=text) for text in TEXTS]
    )
    assert [node.embedding for node in nodes] == expected(TEXTS)
