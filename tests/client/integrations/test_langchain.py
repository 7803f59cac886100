import asyncio
import gc
import pickle
import threading
import time

import numpy as np
import pytest
from bertron_client import AsyncClient, Client, InvalidInputError, ServerUnavailableError
from bertron_client.integrations.langchain import BertronEmbeddings
from fake_triton_server import closed_port_url, vector_of
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore

TEXTS = [f"document number {number}" for number in range(20)]  # three requests of the server


@pytest.fixture
def embeddings(server, protocol):
    opened = BertronEmbeddings(server.url(protocol), timeout_s=10)
    yield opened
    opened.close()


def expected(texts):
    return [vector_of(text).tolist() for text in texts]


def test_documents_and_a_query(embeddings):
    assert isinstance(embeddings, Embeddings)
    assert embeddings.embed_documents(TEXTS) == expected(TEXTS)
    assert embeddings.embed_query("a query") == vector_of("a query").tolist()
    assert embeddings.embed_documents([]) == []
    assert type(embeddings.embed_query("a query")[0]) is float


def test_documents_and_a_query_asynchronously(embeddings, server):
    async def embed():
        documents = await embeddings.aembed_documents(TEXTS)
        server.behaviour.delay_s = 0.2
        queries = await asyncio.gather(*(embeddings.aembed_query(text) for text in TEXTS[:5]))
        await embeddings.aclose()
        return documents, queries

    assert asyncio.run(embed()) == (expected(TEXTS), expected(TEXTS[:5]))
    assert server.behaviour.most_in_flight == 5
    assert not [t for t in threading.enumerate() if t.name.startswith("asyncio_")]  # no executor


# asyncio's word for loops that ended with a connection open, as these do.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_event_loops_one_after_another_and_side_by_side(embeddings):
    for number in range(3):
        text = f"text {number}"
        assert asyncio.run(embeddings.aembed_query(text)) == vector_of(text).tolist()
    results = {}

    async def embed(name):
        rows = []
        for number in range(10):
            rows.append(await embeddings.aembed_query(f"{name} {number}"))
            await asyncio.sleep(0.005)
        results[name] = rows

    threads = [
        threading.Thread(target=asyncio.run, args=(embed(name),), daemon=True) for name in "abc"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for name in "abc":
        assert results[name] == expected([f"{name} {number}" for number in range(10)])
    asyncio.run(embeddings.aclose())
    gc.collect()


def test_options_reach_the_server(server):
    with Client(server.http_url) as client:
        embeddings = BertronEmbeddings(
            client=client,
            truncate="left",
            dimensions=4,
            normalize=True,
            query_prefix="query: ",
            document_prefix="passage: ",
        )
        for row, text in (
            (embeddings.embed_query("x"), "query: x"),
            (embeddings.embed_documents(["y"])[0], "passage: y"),
            (asyncio.run(embeddings.aembed_documents(["z"]))[0], "passage: z"),
            (asyncio.run(embeddings.aembed_query("q"))[0:4], "query: q"),
        ):
            vector = vector_of(text)[:4]
            np.testing.assert_allclose(row, vector / np.linalg.norm(vector), rtol=1e-5)
        assert {r.parameters["truncate"] for r in server.behaviour.requests} == {"left"}


def test_a_client_of_the_callers_stays_open(server):
    async def with_async_client():
        async with AsyncClient(server.http_url) as client:
            embeddings = BertronEmbeddings(async_client=client)
            await embeddings.aembed_query("a")
            await embeddings.aclose()
            assert await embeddings.aembed_query("a") == vector_of("a").tolist()
            with pytest.raises(TypeError, match="only async_client is given"):
                embeddings.embed_query("a")

    asyncio.run(with_async_client())
    with Client(server.http_url) as client:
        embeddings = BertronEmbeddings(client=client)
        embeddings.close()
        assert embeddings.embed_query("a") == vector_of("a").tolist()
        asyncio.run(embeddings.aclose())
        assert embeddings.embed_query("a") == vector_of("a").tolist()


def test_an_own_client_is_closed(server):
    embeddings = BertronEmbeddings(server.http_url)
    embeddings.embed_query("a")
    embeddings.close()
    with pytest.raises(RuntimeError, match="the client is closed"):
        embeddings.embed_query("a")
    with pytest.raises(RuntimeError, match="the client is closed"):
        asyncio.run(embeddings.aembed_query("a"))


def test_wrong_arguments_are_refused_at_once(server):
    with pytest.raises(TypeError, match="neither url nor client"):
        BertronEmbeddings()
    with pytest.raises(TypeError, match="no_such_option"):
        BertronEmbeddings(server.http_url, no_such_option=1)
    with pytest.raises(ValueError, match="is wanted"):
        BertronEmbeddings("somewhere")
    with Client(server.http_url) as client:
        with pytest.raises(TypeError, match="url and a client are given"):
            BertronEmbeddings(server.http_url, client=client)
        with pytest.raises(TypeError, match="timeout_s: options go with url"):
            BertronEmbeddings(client=client, timeout_s=3)


def test_errors_are_the_clients(server, embeddings):
    with pytest.raises(InvalidInputError) as caught:
        embeddings.embed_documents(["fine", None])
    assert caught.value.index == 1
    gone = BertronEmbeddings(closed_port_url("http"), timeout_s=2)
    with pytest.raises(ServerUnavailableError):
        gone.embed_query("a")
    gone.close()


def test_it_can_be_pickled_with_a_url(server, embeddings):
    embeddings.embed_query("a")
    copy = pickle.loads(pickle.dumps(embeddings))  # noqa: S301
    assert copy.embed_query("a") == vector_of("a").tolist()
    copy.close()
    with Client(server.http_url) as client, pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(BertronEmbeddings(client=client))


def test_a_vector_store_finds_the_text(embeddings):
    store = InMemoryVectorStore.from_texts(TEXTS, embeddings)
    (found, score), *others = store.similarity_search_with_score(TEXTS[7], k=3)
    assert found.page_content == TEXTS[7]
    assert score == pytest.approx(1, abs=1e-6)
    assert all(other < 0.99 for _, other in others)

    async def search():
        await store.aadd_texts(["a late text"])
        try:
            return await store.as_retriever(search_kwargs={"k": 1}).ainvoke("a late text")
        finally:
            await embeddings.aclose()

    started = time.monotonic()
    assert [document.page_content for document in asyncio.run(search())] == ["a late text"]
    assert time.monotonic() - started < 5
