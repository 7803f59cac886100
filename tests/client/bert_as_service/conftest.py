import threading
import time

import pytest
from bertron_client.bert_as_service import BertClient


@pytest.fixture
def leaks_no_thread():
    others = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        mine = [thread.name for thread in set(threading.enumerate()) - others]
        left = [name for name in mine if name.startswith("bertron-")]
        if not left:
            return
        time.sleep(0.01)
    pytest.fail(f"threads left: {left}")


@pytest.fixture
def bc(server, protocol, leaks_no_thread):
    with BertClient(url=server.url(protocol), timeout=10_000) as opened:
        yield opened
