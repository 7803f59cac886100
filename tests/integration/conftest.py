"""One real server for the whole suite: what `bertron export` wrote, tritonserver, HTTP and gRPC."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bertron_client import Client
from bertron_server.server import TritonServer
from real_server import MODEL_REPOSITORY, TEXTS, TIMEOUT_S


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.integration)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    if not (MODEL_REPOSITORY / "bert" / "1" / "manifest.json").is_file():
        pytest.fail("the default model is not exported: run `make export`")
    log = tmp_path_factory.mktemp("server") / "tritonserver.log"
    with TritonServer(MODEL_REPOSITORY, log_path=log) as running:
        yield running
        assert running.is_alive(), running.log_tail()


@pytest.fixture(scope="session", params=["grpc", "http"])
def client(request: pytest.FixtureRequest, server: TritonServer) -> Iterator[Client]:
    url = server.grpc_url if request.param == "grpc" else server.http_url
    with Client(url, timeout_s=TIMEOUT_S) as opened:
        yield opened


@pytest.fixture(scope="session")
def known(server: TritonServer) -> np.ndarray:
    """[len(TEXTS), E]: what the server answers when nothing else is going on."""
    with Client(server.grpc_url, timeout_s=TIMEOUT_S) as client:
        return np.asarray(client.embed(TEXTS))
