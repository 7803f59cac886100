import threading

import pytest
from bertron_client import Client
from fake_triton_server import FakeTritonServer


@pytest.fixture
def server():
    with FakeTritonServer() as running:
        yield running


@pytest.fixture(params=["http", "grpc"])
def protocol(request):
    return request.param


@pytest.fixture
def client(server, protocol):
    with Client(server.url(protocol), timeout_s=10) as opened:
        yield opened
    assert not [t for t in threading.enumerate() if t.name.startswith("bertron-")]
