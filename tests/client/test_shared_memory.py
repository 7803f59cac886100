"""Tensors through shared memory: right rows, nothing left, and no region used too early."""

import asyncio
import os
import subprocess
import sys
import time
import weakref

import fake_triton_memory
import numpy as np
import pytest
from bertron_client import (
    AsyncClient,
    AuthenticationError,
    BertronError,
    DeadlineExceededError,
    ProtocolError,
    RetryPolicy,
    ServerUnavailableError,
    _shared_memory,
)
from bertron_client._shared_memory import Regions
from deadlines import ends_within
from fake_triton_memory import unregister
from fake_triton_model import RefusalError, vectors_of

TEXTS = [f"text {i} " + "x" * (i * 31 % 80) for i in range(60)]


def files():
    """Shared memory objects by their names, other programs' too."""
    return set(os.listdir("/dev/shm"))  # noqa: PTH208, S108


def keys(server):
    """Names of what the client has registered."""
    return {region.key.lstrip("/") for region in server.behaviour.regions.values()}


@pytest.fixture
def client(server, protocol, open_client):
    client = open_client(server.url(protocol), shared_memory=True, timeout_s=10)
    yield client
    used = keys(server)
    client.close()
    assert not used & files()


def test_rows_come_through_a_few_regions_that_go_with_the_client(client, server):
    for _ in range(3):
        np.testing.assert_array_equal(client.embed(TEXTS), vectors_of(TEXTS))
    assert 1 <= len(server.behaviour.regions) <= 4
    assert keys(server) <= files()
    used = keys(server)
    client.close()
    assert not server.behaviour.regions
    assert not used & files()


@pytest.mark.parametrize("pairs", [None, ["b"]])
def test_texts_lie_in_the_region_too(client, monkeypatch, pairs):
    def read(*arguments):
        found.append(original(*arguments))
        return found[-1]

    found = []
    original = fake_triton_memory.read
    monkeypatch.setattr(fake_triton_memory, "read", read)
    client.embed(["a"], text_pairs=pairs)
    assert found == [b"\1\0\0\0" + text.encode() for text in ["a", *(pairs or [])]]


def test_every_kind_of_call(client, server):
    embeddings = client.embed(TEXTS, text_pairs=TEXTS[::-1])
    np.testing.assert_array_equal(embeddings, vectors_of(TEXTS, TEXTS[::-1]))
    rows = list(client.embed_iter(TEXTS, ordered=False))
    for row in rows:
        np.testing.assert_array_equal(row.vector, vectors_of([TEXTS[row.index]])[0])
    tokens = [["New York", "is"], ["big"]]
    embeddings = client.embed(tokens, is_pretokenized=True, dimensions=4)
    np.testing.assert_array_equal(embeddings, vectors_of(["New York is", "big"])[:, :4])
    assert client.tokenize(["a b"])[0].tokens == ["[CLS]", "a", "b", "[SEP]"]
    assert client.embed([]).shape == (0, 16)
    assert server.behaviour.regions


def test_rows_are_the_callers_own(client):
    first = client.embed(["one"])
    kept = np.array(first)
    client.embed(["two"])
    np.testing.assert_array_equal(first, kept)


def test_a_region_whose_answer_is_late_is_not_used_again(client, server):
    client.embed(TEXTS)
    server.behaviour.fault, server.behaviour.late_s = "late", 0.15
    server.behaviour.only_texts_with = "late"
    for number in range(4):
        late = [f"late {number} {i}" for i in range(16)]
        with ends_within(0.1), pytest.raises(DeadlineExceededError):
            client.embed(late, timeout_s=0.1)
        for _ in range(4):
            np.testing.assert_array_equal(client.embed(TEXTS), vectors_of(TEXTS))


def test_a_server_that_has_lost_the_regions_gets_them_again(client, server):
    for _ in range(3):
        np.testing.assert_array_equal(client.embed(TEXTS), vectors_of(TEXTS))
        unregister(server.behaviour, None)


@pytest.mark.parametrize("fault", ["busy", "stopping"])
def test_a_fault_that_passes_is_not_seen(client, server, fault):
    client.embed(["warm"])
    server.behaviour.fault, server.behaviour.fail_first = fault, 2
    np.testing.assert_array_equal(client.embed(TEXTS), vectors_of(TEXTS))


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("invalid", BertronError),
        ("short_data", ProtocolError),  # the rest is what the region held before
        ("wrong_count", ProtocolError),
        ("too_many_rows", BertronError),
        ("wrong_dtype", BertronError),
        ("missing_output", ProtocolError),
        ("nan", ProtocolError),
    ],
)
def test_a_wrong_answer_is_noticed(client, server, fault, kind):
    client.embed(["hello"])
    server.behaviour.fault = fault
    with pytest.raises(kind):
        client.embed(["hello"])
    server.behaviour.fault = None
    np.testing.assert_array_equal(client.embed(["hello"]), vectors_of(["hello"]))


def test_a_server_that_does_not_allow_it_says_so(server, protocol, open_client):
    server.behaviour.restricted = {"shared-memory"}
    before = files()
    retry = RetryPolicy(max_retries=0)
    client = open_client(server.url(protocol), shared_memory=True, retry=retry)
    words = "does not let clients register shared memory; .*`bertron serve --shared-memory`"
    with pytest.raises(AuthenticationError, match=words) as caught:
        client.embed(["a"])
    assert f"model 'text_embedding' at {server.url(protocol)}" in str(caught.value)
    assert "is restricted" in str(caught.value.__cause__)  # the server's own words
    assert not {name for name in files() - before if name.startswith("psm_")}


def test_a_token_that_is_missing_is_not_answered_with_advice_about_shared_memory(client, server):
    client.tokenize(["a"])  # learns the limits
    server.behaviour.required_token = "another"  # noqa: S105
    with pytest.raises(AuthenticationError, match="a bearer token is wanted") as caught:
        client.embed(["a"])
    assert "--shared-memory" not in str(caught.value)


def test_a_cancelled_call_gives_its_region_up(server, protocol):
    async def check():
        async with AsyncClient(server.url(protocol), shared_memory=True) as client:
            await client.embed(TEXTS)
            for number in range(4):
                late = [f"late {number} {i}" for i in range(16)]
                task = asyncio.ensure_future(client.embed(late))
                await asyncio.sleep(0.03)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                for _ in range(3):
                    np.testing.assert_array_equal(await client.embed(TEXTS), vectors_of(TEXTS))

    server.behaviour.fault, server.behaviour.late_s = "late", 0.1
    server.behaviour.only_texts_with = "late"
    asyncio.run(check())


def test_an_abandoned_region_is_the_servers_for_its_requests_time_and_the_grace(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(_shared_memory.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(_shared_memory, "_GRACE_S", 7.0)
    regions = Regions()
    names = []
    for remaining_s in (30.0, 0.0):
        region = regions.acquire(1)
        region.is_registered = True
        names.append(region.name)
        regions.abandon(region, remaining_s)
    for seconds, due in ((6.9, []), (0.2, names[1:]), (29.8, []), (0.2, names[:1])):
        now[0] += seconds
        assert regions.due() == due


def test_an_abandoned_region_is_not_remembered():
    regions = Regions()
    region = regions.acquire(1)
    gone = weakref.ref(region)
    regions.abandon(region, 30.0)
    del region
    assert gone() is None


def test_a_region_whose_answer_was_lost_stays_until_its_request_is_over(
    client, server, monkeypatch
):
    monkeypatch.setattr(_shared_memory, "_GRACE_S", 0.0)
    client.embed(["a"])
    (name,) = server.behaviour.regions
    server.behaviour.fault, server.behaviour.fail_first = "stopping", 1
    started = time.monotonic()
    client.embed(["a"], timeout_s=1.5)  # its second try would unregister what is due
    client.embed(["a"])
    assert name in server.behaviour.regions
    time.sleep(max(0.0, started + 1.6 - time.monotonic()))
    client.embed(["a"])
    assert name not in server.behaviour.regions


@pytest.fixture
def no_grace(monkeypatch):
    """An abandoned region is due at once, whatever time its request had left."""
    monkeypatch.setattr("bertron_client._shared_memory._GRACE_S", -60.0)


def test_a_region_whose_registration_is_late_is_unregistered(client, server, monkeypatch, no_grace):
    def register(*region):
        fake_triton_memory_register(*region)
        time.sleep(0.3)

    client.tokenize(["a"])  # learns the limits
    fake_triton_memory_register = fake_triton_memory.register
    with monkeypatch.context() as patch:
        patch.setattr(fake_triton_memory, "register", register)
        with pytest.raises(DeadlineExceededError):
            client.embed(["a"], timeout_s=0.1)
    (name,) = server.behaviour.regions
    client.embed(["a"])
    assert name not in server.behaviour.regions
    client.embed(["a"])
    assert server.behaviour.count("shared-memory") == 3  # it, its end, and another


def test_a_region_that_could_not_be_unregistered_is_later(client, server, monkeypatch, no_grace):
    def fail(behaviour, name):
        asked.append(name)
        raise RefusalError(500, "not now")

    asked = []
    client.embed(["a"])
    (name,) = server.behaviour.regions
    server.behaviour.fault, server.behaviour.late_s = "late", 0.2
    with pytest.raises(DeadlineExceededError):
        client.embed(["a"], timeout_s=0.1)
    server.behaviour.fault = None
    with monkeypatch.context() as patch:
        patch.setattr(fake_triton_memory, "unregister", fail)
        np.testing.assert_array_equal(client.embed(["a"]), vectors_of(["a"]))
    assert asked == [name]
    assert name in server.behaviour.regions
    np.testing.assert_array_equal(client.embed(["a"]), vectors_of(["a"]))
    assert name not in server.behaviour.regions


def test_after_a_long_outage_no_call_is_spent_on_old_regions(
    server, protocol, open_client, no_grace
):
    retry = RetryPolicy(max_retries=0)
    client = open_client(server.url(protocol), shared_memory=True, retry=retry, timeout_s=10)
    client.tokenize(["a"])
    server.behaviour.fault, server.behaviour.fault_strikes = "stopping", ("shared-memory",)
    for _ in range(20):
        with pytest.raises(ServerUnavailableError):
            client.embed(["a"])
    server.behaviour.fault = None
    for asked in (9, 8, 4, 0):  # 20 in all, and one registration
        server.behaviour.arrivals.clear()
        client.embed(["a"])
        assert server.behaviour.count("shared-memory") == asked


def test_a_program_that_closes_nothing_leaves_nothing(server, protocol):
    program = """
import os, sys
from bertron_client import Client
client = Client(sys.argv[1], shared_memory=True)
client.embed(["a"] * 30)
pid = os.fork()
if pid == 0:
    client.embed(["b"] * 30)
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
client.embed(["c"] * 30)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, server.url(protocol)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "resource_tracker" not in done.stderr
    assert 2 <= len(server.behaviour.regions) <= 8  # of both processes, as far as the server knows
    assert not keys(server) & files()
