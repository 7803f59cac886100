"""The whole command, with Locust, against a server on loopback."""

import re
import subprocess
import sys

import pytest
from fake_triton_server import FakeTritonServer, closed_port_url


@pytest.fixture
def server():
    with FakeTritonServer() as running:
        yield running


def run(*arguments):
    command = [sys.executable, "-m", "bertron_loadtest", "--seconds", "2", "--users", "4"]
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_good_server_passes_over_both_protocols(server, tmp_path):
    done = run("--url", server.http_url, "--url", server.grpc_url, "--csv", str(tmp_path / "kept"))
    assert done.returncode == 0, done.stderr
    for name in ("grpc, embed 8 texts", "http, embed 32 texts", "all"):
        assert re.search(rf"^{name} +\d+ +0 +\d+\.\d( +\d+){{4}}$", done.stdout, re.MULTILINE)
    assert (tmp_path / "kept_final_stats.csv").exists()


def test_a_wrong_answer_fails(server):
    server.behaviour.fault = "mixed_up"
    server.behaviour.only_texts_with = "The ferry leaves at six."  # with its neighbours in a batch
    done = run("--url", server.grpc_url, "--batch-sizes", "8", "--users", "8")
    assert done.returncode == 1
    assert "WrongAnswerError" in done.stdout
    assert "not every answer was right" in done.stderr


def test_a_server_that_fails_or_is_absent_fails(server):
    server.behaviour.fault = "busy"
    done = run("--url", server.http_url)
    assert done.returncode == 1
    assert "OverloadedError" in done.stdout
    done = run("--url", closed_port_url("grpc"))
    assert done.returncode == 1
    assert "ServerUnavailableError" in done.stdout


@pytest.mark.parametrize("urls", [["https://x:1"], ["http://x:1", "http://y:1"]])
def test_wrong_urls_are_refused(urls):
    done = run(*(part for url in urls for part in ("--url", url)))
    assert done.returncode == 1
    assert "one of each is wanted" in done.stderr
    assert "Traceback" not in done.stderr
