"""The end of an event loop, as something that a transport can see coming."""

from __future__ import annotations

import contextlib
from typing import Any, AsyncGenerator, Awaitable, Callable


def at_end_of_loop(action: Callable[[], Awaitable[Any]]) -> AsyncGenerator[None, None]:
    """Have ``action`` awaited when the running event loop shuts down.

    asyncio has no hook for that, but closes the async generators that were begun under a loop
    before it closes the loop itself (``asyncio.run`` does, and so do other runners).

    Returns:
        What to keep as long as ``action`` is wanted; its ``aclose`` is ``action``, once.
    """

    async def wait() -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await action()

    generator = wait()
    with contextlib.suppress(StopIteration):  # so it says that it has come to its yield
        generator.asend(None).send(None)
    return generator
