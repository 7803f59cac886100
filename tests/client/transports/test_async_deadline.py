"""A call's time ends before, within or after what a task awaits."""

import asyncio
import time

import pytest
from bertron_client import DeadlineExceededError
from bertron_client._call import Call
from bertron_client._transports.async_deadline import deadline_of


async def within(call, work):
    async with deadline_of(call):
        return await work


def test_a_call_that_is_over_begins_nothing():
    call = Call("somewhere", timeout_s=0.01)
    time.sleep(0.02)
    begun = []

    async def work():
        async with deadline_of(call):
            begun.append(True)

    with pytest.raises(DeadlineExceededError, match=r"0\.01 s \(somewhere\)"):
        asyncio.run(work())
    assert not begun


def test_a_call_ends_what_takes_longer():
    call = Call("somewhere", timeout_s=0.05)
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        asyncio.run(within(call, asyncio.sleep(60)))
    assert time.monotonic() - started < 10


def test_what_is_in_time_is_returned():
    assert asyncio.run(within(Call("somewhere", timeout_s=60), asyncio.sleep(0, "done"))) == "done"


def test_a_timeout_that_is_not_the_calls_stays_itself():
    async def time_out():
        raise TimeoutError("another")

    with pytest.raises(TimeoutError, match="another") as caught:
        asyncio.run(within(Call("somewhere", timeout_s=60), time_out()))
    assert not isinstance(caught.value, DeadlineExceededError)
