"""The commands a user types, as processes of their own, against the real model."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from bertron_client import Client
from real_server import MODEL_REPOSITORY, ROOT, TEXTS, TIMEOUT_S

BERTRON = (sys.executable, "-m", "bertron_server.cli")


def run(*arguments: str, cwd: Path = ROOT, timeout_s: float = 120) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*BERTRON, *arguments], capture_output=True, text=True, timeout=timeout_s, cwd=cwd
    )


def test_health_is_a_real_inference(server):
    healthy = run("health", "--url", server.http_url)
    assert healthy.returncode == 0, healthy.stderr
    assert "384" in healthy.stdout
    nobody = run("health", "--url", "http://127.0.0.1:9", "--timeout-s", "2")
    assert nobody.returncode == 1
    assert "Traceback" not in nobody.stderr


def test_encode_gives_the_servers_vectors(server, known, tmp_path):
    source, target = tmp_path / "texts.txt", tmp_path / "vectors.npy"
    source.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    done = run("encode", str(source), "--url", server.grpc_url, "--output", str(target))
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(target), known, atol=1e-5)


def test_serve_from_start_to_a_clean_stop(tmp_path):
    """Also the printed numbers: what the banner says must be what is served."""
    command = [*BERTRON, "serve", "--model-repository", str(MODEL_REPOSITORY)]
    command += ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    output = (tmp_path / "output").open("w+")
    process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=tmp_path)
    try:
        banner = _wait_for(tmp_path / "output", r"grpc://127\.0\.0\.1:\d+", process)
        for words in ("sentence-transformers/all-MiniLM-L6-v2", "float32", "256", "100000"):
            assert words in banner.replace(",", ""), words
        url = re.search(r"grpc://127\.0\.0\.1:\d+", banner)
        with Client(url.group(), timeout_s=TIMEOUT_S) as client:
            assert client.embed(["a text"]).shape == (1, 384)
        process.send_signal(signal.SIGTERM)
        assert process.wait(45) == 0
    finally:
        process.kill()
        process.wait(10)
        output.close()


def test_the_demo_runs_to_its_end():
    done = subprocess.run(
        [sys.executable, "-m", "bertron_server.demo"],
        capture_output=True,
        text=True,
        timeout=180,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert "vectors 640 x 384" in done.stdout
    # The search is judged, not only run: the nearest review does speak of the charge.
    after = done.stdout.split('"how long does a charge last?"')[1]
    assert re.search(r"recharge|battery", after.splitlines()[1])


def _wait_for(path: Path, pattern: str, process: subprocess.Popen) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        text = path.read_text()
        if re.search(pattern, text):
            time.sleep(0.2)  # the rest of the banner
            return path.read_text()
        assert process.poll() is None, text
        time.sleep(0.05)
    raise AssertionError(f"no {pattern} within 60 s:\n{path.read_text()}")
