"""What only AsyncClient can be asked: cancellation, event loops, tasks, asynchronous sources."""

import asyncio
import contextlib
import gc
import itertools
import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from bertron_client import (
    AsyncClient,
    Client,
    DeadlineExceededError,
    InvalidInputError,
    OverloadedError,
    RetryPolicy,
)
from bertron_client._wire.operations import Infer
from bertron_client.testing import MockTransport
from fake_triton_model import vector_of, vectors_of


async def assert_right(client, texts):
    np.testing.assert_array_equal(await client.embed(texts), vectors_of(texts))


async def other_tasks():
    """Tasks besides the test's own, a moment later."""
    await asyncio.sleep(0.02)
    return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


async def connection_is_in_use(server):
    """Wait until the server has a request and keeps it."""
    while not server.behaviour.in_flight:
        await asyncio.sleep(0.01)


async def connections_settle(server, count):
    """Wait until the server has no more than so many connections."""
    for _ in range(200):
        if server.behaviour.connections_open <= count:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{server.behaviour.connections_open} connections are open")


def test_one_client_on_one_event_loop_after_another(server, protocol):
    client = AsyncClient(server.url(protocol))
    texts = [f"text {i}" for i in range(20)]
    for _ in range(4):
        asyncio.run(assert_right(client, texts))
    asyncio.run(client.close())
    with pytest.raises(RuntimeError, match="the client is closed"):
        asyncio.run(client.embed(["a"]))


def test_a_new_loop_need_not_wait_for_the_old_ones_goodbye(server, protocol):
    """The first loop ends with requests under way and nobody closes anything."""
    client = AsyncClient(server.url(protocol))

    async def begin():
        tasks = [asyncio.ensure_future(client.embed([f"late {i}"])) for i in range(5)]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()

    server.behaviour.fault, server.behaviour.only_texts_with = "late", "late"
    server.behaviour.late_s = 0.1
    asyncio.run(begin())
    asyncio.run(assert_right(client, ["a", "b"]))
    asyncio.run(client.close())


def test_a_cancelled_call_ends_at_once_and_its_answer_is_nobodys(server, protocol):
    async def check():
        async with AsyncClient(server.url(protocol)) as client:
            await assert_right(client, ["warm"])
            server.behaviour.fault, server.behaviour.late_s = "late", 0.15
            server.behaviour.only_texts_with = "late"
            for number in range(5):
                for texts in ([f"late {number}"], [f"late {number} {i}" for i in range(30)]):
                    task = asyncio.ensure_future(client.embed(texts))
                    await asyncio.sleep(0.03)
                    started = time.monotonic()
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task
                    assert time.monotonic() - started < 0.1
                    await assert_right(client, [f"prompt {number} {i}" for i in range(20)])
            assert not await other_tasks()
            await connections_settle(server, 8)

    asyncio.run(check())


def test_cancellation_at_any_moment(server, protocol):
    """Many calls, each cancelled after its own time, connecting included; the rest are right."""
    dice = random.Random(7)

    async def call(client, number):
        texts = [f"{number} {i}" for i in range(dice.randrange(1, 30))]
        if number % 3 == 0:
            return await assert_right(client, texts)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(assert_right(client, texts), dice.uniform(0, 0.06))
        return None

    async def check():
        async with AsyncClient(server.url(protocol)) as client:
            await asyncio.gather(*(call(client, number) for number in range(60)))
            assert not await other_tasks()
            await assert_right(client, [str(i) for i in range(50)])

    server.behaviour.random_delay_s = 0.03
    asyncio.run(check())


def test_a_hundred_tasks_share_a_client(server, protocol):
    async def check():
        async with AsyncClient(server.url(protocol), max_requests_in_flight=2) as client:
            await asyncio.gather(
                *(
                    assert_right(client, [f"{task} {i}" for i in range(task % 20)])
                    for task in range(100)
                )
            )
            assert not await other_tasks()

    server.behaviour.random_delay_s = 0.01
    asyncio.run(check())


def test_the_event_loop_is_never_held_up(server, protocol):
    """Everything of the client's that runs on the loop is short, while the server is slow."""
    server.behaviour.delay_s = 0.2
    gaps = []

    async def tick():
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.005)
            gaps.append(time.monotonic() - last)
            last = time.monotonic()

    async def check():
        ticking = asyncio.ensure_future(tick())
        async with AsyncClient(server.url(protocol)) as client:
            await client.embed([str(i) for i in range(32)])
            with pytest.raises(DeadlineExceededError):
                await client.embed([str(i) for i in range(32)], timeout_s=0.1)
        ticking.cancel()

    asyncio.run(check())
    assert sorted(gaps)[-2] < 0.15  # a loaded machine may hold up one


def test_asynchronous_sources(server, protocol):
    async def source(name):
        for number in itertools.count():
            await asyncio.sleep(0)
            yield f"{name} {number}"

    async def check():
        async with AsyncClient(server.url(protocol)) as client:
            seen = 0
            rows = client.embed_iter(source("a"), text_pairs=source("b"))
            async for row in rows:
                np.testing.assert_array_equal(row.vector, vector_of(f"a {seen}", f"b {seen}"))
                seen += 1
                if seen == 100:
                    break
            await rows.aclose()
            assert not await other_tasks()

    asyncio.run(check())


def test_a_stream_that_is_cancelled_leaves_nothing(server, protocol):
    async def consume(client, seen):
        async for row in client.embed_iter(f"text {i}" for i in itertools.count()):
            seen.append(row.index)

    async def check():
        async with AsyncClient(server.url(protocol)) as client:
            seen = []
            task = asyncio.ensure_future(consume(client, seen))
            while len(seen) < 50:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.sleep(0.05)
            assert not await other_tasks()
            assert seen == list(range(len(seen)))
            await assert_right(client, ["a"])

    server.behaviour.random_delay_s = 0.01
    asyncio.run(check())


def test_a_slow_source_does_not_hold_rows_back(server, protocol):
    """What has been read is not sent before its window is full: documented, and bounded."""

    async def source():
        for number in range(3):
            yield f"text {number}"
            await asyncio.sleep(0.05)

    async def check():
        async with AsyncClient(server.url(protocol)) as client:
            return [row.index async for row in client.embed_iter(source())]

    assert asyncio.run(check()) == [0, 1, 2]


def test_wrong_calls_are_refused_when_awaited(server, protocol):
    async def check():
        async with AsyncClient(server.url(protocol)) as client:
            with pytest.raises(TypeError, match="texts is a single str"):
                await client.embed("text")
            with pytest.raises(InvalidInputError):
                await client.embed(["a"], truncate="middle")

    asyncio.run(check())


def test_clients_of_both_kinds_at_once(server, protocol):
    async def check():
        with Client(server.url(protocol)) as blocking:
            async with AsyncClient(server.url(protocol)) as client:
                texts = [f"text {i}" for i in range(30)]
                loop = asyncio.get_running_loop()
                for _ in range(5):
                    rows, _ = await asyncio.gather(
                        loop.run_in_executor(None, blocking.embed, texts),
                        assert_right(client, texts),
                    )
                    np.testing.assert_array_equal(rows, vectors_of(texts))

    asyncio.run(check())


def test_a_blocking_transport_serves_and_closes():
    async def check():
        async with AsyncClient("http://mock", transport=MockTransport(embedding_size=8)) as client:
            assert (await client.embed(["a", "b"])).shape == (2, 8)

    asyncio.run(check())


def test_a_stream_that_fails_leaves_nothing_for_asyncio_to_log():
    """Also where several requests fail in the same moment."""
    logged = []

    class Refusing(MockTransport):
        waiting = 0

        def perform(self, operation, call):
            if isinstance(operation, Infer):
                return self.refuse()
            return super().perform(operation, call)

        async def refuse(self):
            self.waiting += 1
            while self.waiting < 4:
                await asyncio.sleep(0)
            raise OverloadedError("all at once")

    async def check():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: logged.append(context))
        never = RetryPolicy(max_retries=0)
        async with AsyncClient("http://mock", retry=never, transport=Refusing()) as client:
            with pytest.raises(OverloadedError):
                async for _ in client.embed_iter(str(i) for i in range(600)):
                    pass

    asyncio.run(check())
    gc.collect()
    assert not logged


@pytest.mark.parametrize("is_cancelled", ["not", "before", "after"])
def test_a_call_that_the_client_is_closed_under(server, protocol, is_cancelled):
    """It says so, unless its own task is cancelled as well, however close in time."""

    async def check():
        client = AsyncClient(server.url(protocol), retry=RetryPolicy(max_retries=0))
        await assert_right(client, ["warm"])
        server.behaviour.fault, server.behaviour.late_s = "late", 0.2
        task = asyncio.ensure_future(client.embed(["late"]))
        await asyncio.sleep(0.05)
        if is_cancelled == "before":
            task.cancel()
        await client.close()
        if is_cancelled == "after":
            task.cancel()
        if is_cancelled != "not":
            with pytest.raises(asyncio.CancelledError):
                await task
        elif protocol == "grpc":
            with pytest.raises(RuntimeError, match="the client is closed"):
                await task
        else:  # one in use is dropped when its call ends
            assert len(await task) == 1
        assert not await other_tasks()

    asyncio.run(check())


def test_a_call_between_two_tries_ends_with_its_client(server, protocol):
    async def check():
        client = AsyncClient(server.url(protocol), timeout_s=10)
        await assert_right(client, ["warm"])
        server.behaviour.fault, server.behaviour.retry_after_s = "busy", 0.4
        task = asyncio.ensure_future(client.embed(["a"]))
        while len(server.behaviour.requests) < 2:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.1)  # the first try has its answer
        await client.close()
        server.behaviour.fault = None
        with pytest.raises(RuntimeError, match="the client is closed"):
            await task
        assert len(server.behaviour.requests) == 2

    asyncio.run(check())


@pytest.mark.filterwarnings("ignore:unclosed transport")  # asyncio's own word for it
def test_a_call_that_outlives_its_event_loop_drops_its_connection(server):
    """Without the loop, which is closed; that nothing is left the fixtures assert."""

    def check():
        client = AsyncClient(server.http_url)
        call = client.embed(["late"])
        with contextlib.closing(asyncio.new_event_loop()) as loop:
            loop.set_exception_handler(lambda *_: None)  # it would log the task
            loop.run_until_complete(assert_right(client, ["warm"]))
            server.behaviour.fault = "never"
            task = loop.create_task(call)
            loop.run_until_complete(connection_is_in_use(server))
        call.close()  # as the collector does, which would only write an error
        assert not task.done()
        asyncio.run(client.close())

    check()
    gc.collect()  # asyncio's part, before its warning is another test's


def test_a_resolver_that_hangs_holds_nothing_up(monkeypatch):
    def getaddrinfo(host, *arguments, flags=0, **options):
        if host == "hangs.example" and not flags & socket.AI_NUMERICHOST:
            time.sleep(3)
        return original(host, *arguments, flags=flags, **options)

    async def check():
        async with AsyncClient("http://hangs.example") as client:
            with pytest.raises(DeadlineExceededError):
                await client.embed(["a"], timeout_s=0.3)

    original = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    started = time.monotonic()
    asyncio.run(check())
    assert time.monotonic() - started < 1.5


def test_the_loops_own_threads_are_not_needed(server):
    async def check():
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as busy:
            loop.set_default_executor(busy)
            sleeping = loop.run_in_executor(None, time.sleep, 1)
            for host in ("127.0.0.1", "localhost"):
                url = server.http_url.replace("127.0.0.1", host)
                async with AsyncClient(url, timeout_s=0.5) as client:
                    await assert_right(client, ["a"])
            assert not sleeping.done()
            await sleeping

    asyncio.run(check())


@pytest.mark.parametrize("count", [1, 30])  # one request, and four at the same time
def test_one_client_goes_to_and_fro_between_event_loops(server, protocol, count):
    """Each stopped, not closed: what it had open is let go of while it does not run."""
    client = AsyncClient(server.url(protocol), retry=RetryPolicy(max_retries=0), timeout_s=5)
    with contextlib.closing(asyncio.new_event_loop()) as a:
        with contextlib.closing(asyncio.new_event_loop()) as b:
            for number, loop in enumerate((a, b, a, b, a, a, b, b, a)):
                texts = [f"{number} {i}" for i in range(count)]
                loop.run_until_complete(assert_right(client, texts))
            b.run_until_complete(other_tasks())
        a.run_until_complete(client.close())
        a.run_until_complete(other_tasks())
