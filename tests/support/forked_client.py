"""A program: uses a client, forks, and uses it on both sides of the fork.

Usage: forked_client.py URL KIND HOW

KIND is "sync", "async" (forks with the AsyncClient open), "async-closed", "running-loop" (forks
in the middle of the AsyncClient's event loop) or "threads" (forks while threads are in calls). HOW
is "os.fork" or "multiprocessing".
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable

import numpy as np
from bertron_client import AsyncClient, Client
from fake_triton_model import vectors_of

_ROUNDS = 5


def _texts(name: str, number: int) -> list[str]:
    return [f"{name} {number} {i}" for i in range(30)]


def check(client: Client, name: str) -> None:
    """Embed and compare."""
    for number in range(_ROUNDS):
        texts = _texts(name, number)
        np.testing.assert_array_equal(client.embed(texts), vectors_of(texts))


async def check_async(client: AsyncClient, name: str) -> None:
    """The same."""
    for number in range(_ROUNDS):
        texts = _texts(name, number)
        np.testing.assert_array_equal(await client.embed(texts), vectors_of(texts))


def start(child: Callable[[], None], how: str) -> Callable[[], int]:
    """Run ``child`` in a fork of this process; returns what waits for its exit code."""
    if how == "multiprocessing":
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()

        def wait() -> int:
            process.join(30)
            return -1 if process.exitcode is None else process.exitcode

        return wait
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            child()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def blocking(url: str, kind: str, how: str) -> int:
    """Fork beside a Client."""
    with Client(url, timeout_s=10) as client:
        check(client, "before")
        stopped = threading.Event()

        def work() -> None:
            while not stopped.is_set():
                check(client, "thread")

        threads = [threading.Thread(target=work) for _ in range(4 * (kind == "threads"))]
        for thread in threads:
            thread.start()
        waits = [start(lambda: check(client, "child"), how) for _ in range(2)]
        check(client, "parent")
        codes = [wait() for wait in waits]
        stopped.set()
        for thread in threads:
            thread.join()
        check(client, "after")
    return max(map(abs, codes))


def asynchronous(url: str, kind: str, how: str) -> int:
    """Fork beside an AsyncClient whose event loop is not running."""
    client = AsyncClient(url, timeout_s=10)
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        loop.run_until_complete(check_async(client, "before"))
        if kind == "async-closed":
            loop.run_until_complete(client.close())
            client = AsyncClient(url, timeout_s=10)
        wait = start(lambda: asyncio.run(check_async(client, "child")), how)
        loop.run_until_complete(check_async(client, "parent"))
        code = wait()
        loop.run_until_complete(check_async(client, "after"))
        loop.run_until_complete(client.close())
    return code


async def in_running_loop(url: str, how: str) -> int:
    """Fork in the middle of an event loop, whose connections the child must leave alone."""
    async with AsyncClient(url, timeout_s=10) as client:
        await asyncio.gather(*(check_async(client, f"before {i}") for i in range(5)))
        wait = start(lambda: asyncio.run(check_async(client, "child")), how)
        waiting = asyncio.get_running_loop().run_in_executor(None, wait)
        while not waiting.done():
            await check_async(client, "parent")
        await asyncio.gather(*(check_async(client, f"after {i}") for i in range(5)))
        return await waiting


def main(url: str, kind: str, how: str) -> int:
    """Return 0 when every row was right in every process."""
    if kind == "running-loop":
        return asyncio.run(in_running_loop(url, how))
    return (asynchronous if kind.startswith("async") else blocking)(url, kind, how)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
