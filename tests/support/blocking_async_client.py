"""AsyncClient with the methods of Client, so that one test asks both the same."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from bertron_client import AsyncClient

_LONGEST_CALL_S = 60.0


class BlockingAsyncClient:
    """Each method runs on an event loop in a thread of its own, and blocks until it is done.

    Attributes:
        client: The AsyncClient.
    """

    def __init__(self, url: str, **options: Any) -> None:
        self.client = AsyncClient(url, **options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="test-event-loop")
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Return what a coroutine returns on the client's event loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_LONGEST_CALL_S)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.client, name)
        return lambda *args, **options: self.run(method(*args, **options))

    def embed_iter(self, *args: Any, **options: Any) -> Iterator[Any]:
        """Iterate over the asynchronous generator; what is left of it is closed."""
        rows = self.client.embed_iter(*args, **options)

        async def following() -> Any:
            return await rows.__anext__()

        try:
            while True:
                try:
                    row = self.run(following())
                except StopAsyncIteration:
                    return
                yield row
        finally:
            self.run(rows.aclose())

    def __repr__(self) -> str:
        return repr(self.client)

    def __enter__(self) -> BlockingAsyncClient:
        return self

    def __exit__(self, *exc: object) -> None:
        """Close the client and its event loop, on which nothing may be running any more."""
        try:
            self.run(self.client.close())
            left = self.run(_other_tasks())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
        assert not left, left


async def _other_tasks() -> list[str]:
    """Tasks that are still there shortly after the last call."""
    mine = asyncio.current_task()
    for _ in range(100):
        left = [repr(task) for task in asyncio.all_tasks() if task is not mine]
        if not left:
            break
        await asyncio.sleep(0.01)
    return left
