"""A call's deadline for what a task awaits."""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager
from typing import Any, AsyncIterator

from .._call import Call

if sys.version_info >= (3, 11):

    @asynccontextmanager
    async def deadline_of(call: Call) -> AsyncIterator[None]:
        """Raise DeadlineExceededError inside the block when the call's time is over."""
        seconds = call.remaining_s()  # not within the try: what it raises is a TimeoutError too
        try:
            async with asyncio.timeout(seconds) as timeout:
                yield
        except TimeoutError as error:
            if timeout.expired():
                raise call.exceeded() from error
            raise

else:

    @asynccontextmanager
    async def deadline_of(call: Call) -> AsyncIterator[None]:
        """Raise DeadlineExceededError inside the block when the call's time is over."""
        task: Any = asyncio.current_task()
        is_expired = False

        def expire() -> None:
            nonlocal is_expired
            is_expired = True
            task.cancel()

        handle = asyncio.get_running_loop().call_later(call.remaining_s(), expire)
        try:
            yield
        except asyncio.CancelledError as error:
            if is_expired:
                raise call.exceeded() from error
            raise
        finally:
            handle.cancel()
