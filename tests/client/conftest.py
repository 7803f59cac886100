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
    others = set(threading.enumerate())  # such as a server's that another suite started
    with Client(server.url(protocol), timeout_s=10) as opened:
        yield opened
    mine = set(threading.enumerate()) - others
    assert not [thread for thread in mine if thread.name.startswith("bertron-")]
