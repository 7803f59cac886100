import asyncio
from copy import deepcopy

import numpy as np
import pytest
from bertron_client import AsyncClient, Client, InvalidInputError, RetryPolicy, Tls
from bertron_client.integrations.haystack import BertronDocumentEmbedder, BertronTextEmbedder
from fake_triton_server import vector_of
from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.core.errors import SerializationError
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.utils import Secret

TEXTS = [f"document number {number}" for number in range(20)]  # three requests of the server
EMBEDDERS = [BertronTextEmbedder, BertronDocumentEmbedder]


def run(embedder, text):
    """The vector of one text, from either kind of embedder."""
    if isinstance(embedder, BertronTextEmbedder):
        return embedder.run(text)["embedding"]
    return embedder.run([Document(content=text)])["documents"][0].embedding


async def run_async(embedder, text):
    if isinstance(embedder, BertronTextEmbedder):
        return (await embedder.run_async(text))["embedding"]
    return (await embedder.run_async([Document(content=text)]))["documents"][0].embedding


def test_a_text(server, protocol):
    embedder = BertronTextEmbedder(server.url(protocol), timeout_s=10)
    result = embedder.run(text="two words")
    assert result["embedding"] == vector_of("two words").tolist()
    assert result["meta"] == {"usage": {"prompt_tokens": 4, "total_tokens": 4}, "truncated": 0}
    embedder.close()


def test_documents_are_embedded_in_copies(server, protocol):
    embedder = BertronDocumentEmbedder(server.url(protocol), timeout_s=10)
    documents = [Document(content=text, meta={"page": 3}, score=0.5) for text in TEXTS]
    documents.append(Document(content=None, meta={"page": 4}))
    documents.append(documents[0])  # the same document twice
    documents.append(Document(content="word " * 30))
    before = deepcopy(documents)
    result = embedder.run(documents=documents)
    assert documents == before
    texts = [*TEXTS, "", TEXTS[0], "word " * 30]
    assert [d.embedding for d in result["documents"]] == [vector_of(t).tolist() for t in texts]
    for given, embedded in zip(documents, result["documents"], strict=True):
        assert (embedded.id, embedded.content, embedded.meta) == (
            given.id,
            given.content,
            given.meta,
        )
        assert embedded.score == given.score
    assert result["meta"]["truncated"] == 1
    assert result["meta"]["usage"]["total_tokens"] == 21 * 5 + 2 + 12
    embedder.close()


def test_metadata_is_put_before_the_content(server):
    embedder = BertronDocumentEmbedder(
        server.http_url,
        prefix="<",
        suffix=">",
        meta_fields_to_embed=["title", "year", "absent", "nothing"],
        embedding_separator=" | ",
    )
    meta = {"title": "T", "year": 2024, "nothing": None, "other": "o"}
    document = embedder.run([Document(content="text", meta=meta)])["documents"][0]
    assert document.embedding == vector_of("<T | 2024 | text>").tolist()
    assert document.content == "text"
    embedder.close()


def test_no_documents(server):
    embedder = BertronDocumentEmbedder(server.http_url)
    result = embedder.run([])
    assert result["documents"] == []
    embedder.close()


@pytest.mark.parametrize("kind", EMBEDDERS)
def test_options(server, kind):
    embedder = kind(
        server.http_url, truncate="left", dimensions=4, normalize=True, prefix="a ", suffix=" z"
    )
    vector = vector_of("a text z")[:4]
    row = run(embedder, "text")
    np.testing.assert_allclose(row, vector / np.linalg.norm(vector), rtol=1e-5)
    assert type(row) is list
    assert type(row[0]) is float
    assert server.behaviour.requests[-1].parameters["truncate"] == "left"
    embedder.close()


@pytest.mark.parametrize("kind", EMBEDDERS)
def test_asynchronously(server, protocol, kind):
    embedder = kind(server.url(protocol), timeout_s=10)
    server.behaviour.delay_s = 0.2

    async def embed():
        rows = await asyncio.gather(*(run_async(embedder, text) for text in TEXTS[:5]))
        await embedder.close_async()
        return rows

    assert asyncio.run(embed()) == [vector_of(text).tolist() for text in TEXTS[:5]]
    assert server.behaviour.most_in_flight == 5


@pytest.mark.parametrize("kind", EMBEDDERS)
def test_who_closes_what(server, kind):
    async def with_async_client():
        async with AsyncClient(server.http_url) as client:
            embedder = kind(async_client=client)
            embedder.warm_up()
            await embedder.close_async()
            assert await run_async(embedder, "a") == vector_of("a").tolist()

    asyncio.run(with_async_client())
    with Client(server.http_url) as client:
        embedder = kind(client=client)
        assert run(embedder, "a") == vector_of("a").tolist()
        embedder.close()
        client.embed(["still open"])
    embedder = kind(server.http_url)
    embedder.warm_up()
    assert len(server.behaviour.requests) == 3  # nothing is sent by it
    run(embedder, "a")
    embedder.close()
    embedder.close()
    assert run(embedder, "a") == vector_of("a").tolist()  # a pipeline may be closed and run again
    embedder.close()


def test_inputs_of_the_other_kind_are_refused(server):
    with pytest.raises(TypeError, match="for BertronDocumentEmbedder"):
        BertronTextEmbedder(server.http_url).run([Document(content="a")])
    for documents in ("a", ["a"], [Document(content="a"), "b"]):
        with pytest.raises(TypeError, match="for BertronTextEmbedder"):
            BertronDocumentEmbedder(server.http_url).run(documents)


@pytest.mark.parametrize("kind", EMBEDDERS)
def test_errors_are_the_clients(server, kind):
    embedder = kind(server.http_url)
    server.behaviour.fault = "invalid"
    with pytest.raises(InvalidInputError, match="text 0 is not to my liking") as caught:
        run(embedder, "a")
    assert caught.value.index == 0
    server.behaviour.fault = None
    embedder.close()
    with pytest.raises(TypeError, match="neither url nor client"):
        kind().warm_up()
    with pytest.raises(TypeError, match="no_such_option"):
        kind(server.http_url, no_such_option=1).warm_up()


@pytest.mark.parametrize("kind", EMBEDDERS)
def test_it_becomes_a_dictionary_and_back(server, monkeypatch, tmp_path, kind):
    embedder = kind(
        server.http_url,
        token=Secret.from_env_var("BERTRON_TEST_TOKEN"),
        prefix="p",
        dimensions=4,
        timeout_s=7.0,
        retry=RetryPolicy(max_retries=5),
    )
    data = embedder.to_dict()
    assert data["type"] == f"bertron_client.integrations.haystack.{kind.__name__}"
    parameters = data["init_parameters"]
    assert (parameters["url"], parameters["prefix"]) == (server.http_url, "p")
    assert (parameters["dimensions"], parameters["timeout_s"]) == (4, 7.0)
    assert parameters["retry"]["max_retries"] == 5
    again = kind.from_dict(deepcopy(data))
    assert again.to_dict() == data
    monkeypatch.setenv("BERTRON_TEST_TOKEN", "secret")  # read no sooner than needed
    assert len(run(again, "text")) == 4
    assert server.behaviour.requests[-1].headers["authorization"] == "Bearer secret"
    again.close()
    tls = kind("https://localhost:1", tls=Tls(root_certificates=tmp_path / "ca.pem")).to_dict()
    assert tls["init_parameters"]["tls"]["root_certificates"] == str(tmp_path / "ca.pem")
    assert kind.from_dict(tls).to_dict() == tls


@pytest.mark.parametrize("kind", EMBEDDERS)
def test_what_no_file_can_hold_is_refused(server, kind):
    with Client(server.http_url) as client, pytest.raises(SerializationError, match="give url"):
        kind(client=client).to_dict()
    embedder = kind(server.http_url, token="secret")  # noqa: S106
    with pytest.raises(ValueError, match="serialize"):
        embedder.to_dict()
    run(embedder, "a")
    assert server.behaviour.requests[-1].headers["authorization"] == "Bearer secret"
    embedder.close()


def test_pipelines_write_and_find_documents(server):
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    writing = Pipeline()
    writing.add_component("embedder", BertronDocumentEmbedder(server.http_url))
    writing.add_component("writer", DocumentWriter(store))
    writing.connect("embedder.documents", "writer.documents")
    writing.run({"embedder": {"documents": [Document(content=text) for text in TEXTS]}})
    assert store.count_documents() == 20

    finding = Pipeline()
    finding.add_component("embedder", BertronTextEmbedder(server.http_url))
    finding.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=2))
    finding.connect("embedder.embedding", "retriever.query_embedding")
    best, other = finding.run({"embedder": {"text": TEXTS[7]}})["retriever"]["documents"]
    assert best.content == TEXTS[7]
    assert best.score > 0.999 > other.score
    assert finding.warm_up() is None
    writing.close()
    finding.close()


def test_a_pipeline_is_read_from_its_file(server):
    pipeline = Pipeline()
    pipeline.add_component("embedder", BertronTextEmbedder(server.http_url, timeout_s=5.0))
    written = pipeline.dumps()
    again = Pipeline.loads(written, allowed_modules=["bertron_client.*"])
    assert again.dumps() == written
    result = again.run({"embedder": {"text": "a"}})
    assert result["embedder"]["embedding"] == vector_of("a").tolist()
    again.close()
