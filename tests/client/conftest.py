import asyncio
from contextlib import ExitStack

import pytest
from bertron_client import AsyncClient, Client
from blocking_async_client import BlockingAsyncClient
from fake_triton_server import FakeTritonServer
from leaks import nothing_left

# Longest that a call may go on beyond its deadline.
LATE_S = 0.5


@pytest.fixture(scope="session")
def grpc_is_warm():
    """What gRPC opens on first use and keeps for good is there before anything is counted."""

    async def use_async() -> None:
        async with AsyncClient(server.grpc_url) as client:
            await client.embed(["warm"])

    with FakeTritonServer() as server:
        with Client(server.grpc_url) as client:
            client.embed(["warm"])
        asyncio.run(use_async())


@pytest.fixture(autouse=True)
def leaves_nothing(grpc_is_warm):
    with nothing_left():
        yield


@pytest.fixture
def server():
    with FakeTritonServer() as running:
        yield running


@pytest.fixture(params=["http", "grpc"])
def protocol(request):
    return request.param


@pytest.fixture(params=["sync", "async"])
def style(request):
    return request.param


@pytest.fixture
def open_client(style):
    """Opens clients of one style, with the same blocking methods, and closes them in the end."""
    with ExitStack() as stack:

        def opened(url, **options):
            kind = Client if style == "sync" else BlockingAsyncClient
            return stack.enter_context(kind(url, **options))

        yield opened


@pytest.fixture
def client(server, protocol, open_client):
    return open_client(server.url(protocol), timeout_s=10)
