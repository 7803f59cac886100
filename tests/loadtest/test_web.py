"""Locust's web page, with our tabs, against a server on loopback."""

import json
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from fake_triton_server import FakeTritonServer

LOADTEST = Path(__file__).parents[2] / "loadtest"
TIMEOUT_S = 30


@pytest.fixture
def page():
    """The page's address, while Locust serves it, and the server that it loads."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with FakeTritonServer() as server:
        command = [sys.executable, "-m", "locust", "--web-host", "127.0.0.1"]
        command += ["--web-port", str(port), "--http-url", server.http_url]
        command += ["--grpc-url", server.grpc_url, "HttpUser", "GrpcUser"]
        process = subprocess.Popen(
            command, cwd=LOADTEST, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            yield f"http://127.0.0.1:{port}", server
        finally:
            process.terminate()
            try:
                process.wait(TIMEOUT_S)
            finally:
                process.kill()
                process.wait()


def get(url, data=None):
    body = None if data is None else urllib.parse.urlencode(data).encode()
    with urllib.request.urlopen(url, body, timeout=TIMEOUT_S) as response:  # noqa: S310
        return response.read().decode("utf-8")


def until(check):
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            found = check()
        except OSError:
            found = None
        if found or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def test_the_page_shows_our_own_figures(page):
    url, _ = page
    first = until(lambda: get(url + "/"))
    assert "Bertron: answers" in first
    assert "Bertron: server" in first
    get(url + "/swarm", {"user_count": 4, "spawn_rate": 4})

    def tables():
        stats = json.loads(get(url + "/stats/requests"))
        assert {"stats", "user_count", "state"} <= stats.keys()  # Locust's own are still there
        found = {table["key"]: table["data"] for table in stats["extended_stats"]}
        rows = {row["name"]: row for row in found["answers"]}
        server = {row["name"]: row["value"] for row in found["server"]}
        # Two snapshots of the server, and calls of both kinds.
        return (rows, server) if {"grpc", "http"} <= rows.keys() and server["bert, ms"] else None

    rows, server = until(tables)
    assert float(rows["all"]["texts"]) > 0
    assert int(rows["all"]["right"]) > int(rows["grpc"]["right"]) > 0
    assert rows["all"]["wrong"] == "0"
    assert float(server["bert, ms"]) == pytest.approx(2.5)  # as the fake server's statistics say
    get(url + "/stop", {})
