import asyncio
from contextlib import ExitStack

import grpc.aio
import pytest
from bertron_client import AsyncClient, Client
from blocking_async_client import BlockingAsyncClient
from fake_triton_server import FakeTritonServer
from leaks import nothing_left


@pytest.fixture(scope="session")
def grpc_is_warm():
    """What gRPC opens on first use and keeps for good is there before anything is counted."""

    async def keep_polling():
        async with AsyncClient(server.grpc_url) as client:
            await client.embed(["warm"])
        # gRPC's asyncio side starts a thread with the first channel and, some cancelled calls
        # apart, stops it with the last; with this one it is there throughout.
        return grpc.aio.insecure_channel("127.0.0.1:1")

    with FakeTritonServer() as server:
        with Client(server.grpc_url) as client:
            client.embed(["warm"])
        kept = asyncio.run(keep_polling())
    yield
    del kept


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
