"""The peer's wire, its process, and, where it is installed, itself."""

import base64
import http.client
import json
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from bertron_loadtest import infinity
from bertron_loadtest.infinity import (
    VENV,
    InfinityServer,
    embeddings_request,
    read_embeddings_answer,
)
from bertron_loadtest.peers import demo_checkpoint
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

TEXTS = [
    "The well has never run dry, not even in the summer when the river did.",
    "grüße, 漢字 and 😀",
    "a much longer text, so that the shorter ones beside it are padded in one batch of three",
]

# Serves /health and echoes; what it does instead is said by a word in the checkpoint's name.
FAKE_SERVER = f"""#!{sys.executable}
import http.server, os, pathlib, signal, sys, time
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
checkpoint = options["--model-id"]
print("loading", flush=True)
if "broken" in checkpoint:
    sys.exit("ValueError: no such model")
if "stubborn" in checkpoint:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "endless" in checkpoint:
    time.sleep(60)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
        self.wfile.write(os.environ["HF_HUB_OFFLINE"].encode())
http.server.HTTPServer((options["--host"], int(options["--port"])), Handler).serve_forever()
"""


def answer(vectors, order=None, as_base64=True) -> bytes:
    rows = [
        {
            "index": row,
            "embedding": base64.b64encode(vectors[row].astype("<f4").tobytes()).decode()
            if as_base64
            else vectors[row].tolist(),
        }
        for row in (range(len(vectors)) if order is None else order)
    ]
    return json.dumps({"object": "list", "data": rows, "usage": {"total_tokens": 9}}).encode()


@given(texts=st.lists(st.text(), max_size=4))
def test_a_request_is_json_with_the_texts(texts):
    try:
        body = embeddings_request(texts)
    except UnicodeEncodeError:
        assert any("\ud800" <= character <= "\udfff" for text in texts for character in text)
        return
    document = json.loads(body)
    assert document["input"] == texts
    assert document["encoding_format"] == "base64"


@given(
    vectors=arrays(
        np.float32, array_shapes(min_dims=2, max_dims=2, max_side=5), elements=st.floats(width=32)
    ),
    random=st.randoms(),
    as_base64=st.booleans(),
)
def test_vectors_come_back_in_the_order_of_their_texts(vectors, random, as_base64):
    order = list(range(len(vectors)))
    random.shuffle(order)
    found = read_embeddings_answer(answer(vectors, order, as_base64))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, vectors)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"[]",
        b"null",
        b"{}",
        b'{"error": {"message": "model peer is currently overloaded", "code": 429}}',
        b'{"data": []}',
        b'{"data": [null]}',
        b'{"data": [{"index": 0}]}',
        b'{"data": [{"index": 0, "embedding": "AAA"}]}',  # no base64
        b'{"data": [{"index": 0, "embedding": "AAAA"}]}',  # three bytes
        '{"data": [{"index": 0, "embedding": "é"}]}'.encode(),
        b'{"data": [{"index": 0, "embedding": ["a"]}]}',
        b'{"data": [{"index": 0, "embedding": {}}]}',
        b'{"data": [{"index": 0, "embedding": 1.5}]}',
        b'{"data": [{"index": 0, "embedding": [[1.5]]}]}',
        b'{"data": [{"index": 1, "embedding": [1.5]}]}',
        b'{"data": [{"index": Infinity, "embedding": [1.5]}]}',
        b'{"data": [{"index": 0, "embedding": [1]}, {"index": 0, "embedding": [1]}]}',
        b'{"data": [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": [1, 2]}]}',
        b'{"data": [{"index": 0, "embedding": [1' + b"0" * 400 + b"]}]}",
    ],
)
def test_what_is_no_answer_is_refused(body):
    with pytest.raises(ValueError):  # noqa: PT011 - many reasons
        read_embeddings_answer(body)


@given(data=st.binary())
def test_any_bytes_are_read_or_refused(data):
    with pytest.raises(ValueError):  # noqa: PT011 - many reasons
        read_embeddings_answer(data)


@pytest.fixture
def fake_environment(tmp_path, monkeypatch):
    """An environment whose infinity_emb is the fake server."""
    program = tmp_path / "venv" / "bin" / "infinity_emb"
    program.parent.mkdir(parents=True)
    program.write_text(FAKE_SERVER)
    program.chmod(0o755)
    monkeypatch.setattr(infinity, "VENV", tmp_path / "venv")
    monkeypatch.setattr(infinity, "install", lambda: program.with_name("python"))
    return tmp_path


def is_running(pid: int) -> bool:
    """Not so where it has ended and only waits to be reaped."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def get(url: str, path: str) -> bytes:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


def test_the_server_runs_while_the_block_lasts(fake_environment, tmp_path):
    log = tmp_path / "log"
    with InfinityServer(fake_environment / "checkpoint", log_path=log) as server:
        pid = server.pid
        assert is_running(pid)
        assert get(server.url, "/health") == b"1"
        assert "dtype float32" in server.flags.split(", ")
    assert not is_running(pid)
    assert log.read_text().startswith("loading\n")
    with pytest.raises(ValueError, match="not started"):
        _ = server.pid


def test_a_server_that_ends_says_why(fake_environment):
    with (
        pytest.raises(OSError, match="ended with 1: ValueError: no such model"),
        InfinityServer(fake_environment / "broken"),
    ):
        pass


def test_a_server_that_is_never_ready_is_ended(fake_environment):
    started = time.monotonic()
    with (
        pytest.raises(TimeoutError, match=r"not ready after 1\.5 s: loading"),
        InfinityServer(fake_environment / "endless", ready_timeout_s=1.5),
    ):
        pass
    assert time.monotonic() - started < 1.5 + infinity.STOP_TIMEOUT_S


def test_a_server_that_does_not_stop_is_killed(fake_environment, monkeypatch):
    monkeypatch.setattr(infinity, "STOP_TIMEOUT_S", 0.5)
    with InfinityServer(fake_environment / "stubborn") as server:
        pid = server.pid
    assert not is_running(pid)


def test_the_server_dies_with_its_parent(fake_environment):
    code = f"""
import pathlib, sys, time
from bertron_loadtest import infinity
infinity.VENV = pathlib.Path({str(fake_environment / "venv")!r})
infinity.install = lambda: infinity.VENV / "bin" / "python"
with infinity.InfinityServer(pathlib.Path("checkpoint")) as server:
    print(server.pid, flush=True)
    time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as parent:
        try:
            pid = int(parent.stdout.readline())
            assert is_running(pid)
        finally:
            parent.kill()
    deadline = time.monotonic() + 10
    while is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def mean_of_last_layer(checkpoint: Path, text: str) -> np.ndarray:
    """[E]: the checkpoint's own embedding, of one text alone, so without padding."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(checkpoint)(text, return_tensors="pt")
    with torch.inference_mode():
        states = AutoModel.from_pretrained(checkpoint)(**tokens).last_hidden_state
    vector = states[0].mean(0).numpy()
    return vector / np.linalg.norm(vector)


@pytest.mark.slow
@pytest.mark.skipif(
    not (VENV / ".installed").is_file(),
    reason="infinity-emb is not installed; `python -m bertron_loadtest peers` installs it",
)
def test_the_real_peer_gives_the_checkpoints_own_embeddings():
    checkpoint = demo_checkpoint()
    with InfinityServer(checkpoint) as server:
        assert server.versions["infinity_emb"] == "0.0.78"
        connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/embeddings", embeddings_request(TEXTS), headers)
        response = connection.getresponse()
        found = read_embeddings_answer(response.read())
        connection.request("POST", "/embeddings", embeddings_request([]), headers)
        assert connection.getresponse().status == 422
        connection.close()
    wanted = np.stack([mean_of_last_layer(checkpoint, text) for text in TEXTS])
    cosines = (found * wanted).sum(1)
    assert cosines.min() > 0.99999, cosines
