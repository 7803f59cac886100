"""The load tests against the real server: `make loadtest` in ten seconds, and a real overload."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bertron_loadtest.figures import figures_of
from bertron_loadtest.load import LoadSettings, ServerPlace, run_load
from bertron_loadtest.suite import capacity_of
from bertron_server.server import TritonServer
from real_server import MODEL_REPOSITORY

# A busy machine may answer late; it may not answer wrongly, nor lose anything.
TIMING = {"p99_over_p50", "generator_lag_p99_ms", "texts_per_s"}


@pytest.mark.slow
def test_the_suite_in_ten_seconds(tmp_path):
    folder = tmp_path / "suite"
    command = [sys.executable, "-m", "bertron_loadtest", "suite", "--seconds", "10"]
    command += ["--model-repository", str(MODEL_REPOSITORY), "--output", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert re.search(r"^capacity: \d+\.\d calls/s$", done.stdout, re.MULTILINE), done.stderr
    failed = []
    for name in ("ramp", "quiet", "below", "beyond"):
        assert (folder / name / "report.html").stat().st_size > 10_000
        report = json.loads((folder / name / "figures.json").read_text("utf-8"))
        figures = report["figures"]["all"]
        assert figures["calls"] == figures["right"] + figures["refused"]
        assert figures["calls"] > (5 if name == "quiet" else 20)
        assert figures["not_sent"] == 0
        # The server's side was seen: its steps, its batches and its processes.
        for figure in ("bert_ms", "tokenizer_ms", "batch_tokens", "cpu_cores.bert"):
            assert figures[figure] > 0, figure
        failed += [row for row in report["verdicts"] if not row["passed"]]
    assert {row["figure"] for row in failed} <= TIMING
    assert done.returncode == (1 if failed else 0)


@pytest.fixture
def impatient(tmp_path):
    """A server that refuses what has waited for a second."""
    repository = tmp_path / "models"
    shutil.copytree(MODEL_REPOSITORY, repository, copy_function=os.symlink)
    config = repository / "tokenizer" / "config.pbtxt"
    text = config.read_text("utf-8")
    config.unlink()
    changed = text.replace('string_value: "30000000"', 'string_value: "1000000"')
    assert changed != text
    config.write_text(changed, "utf-8")
    with TritonServer(repository) as server:
        yield ServerPlace(
            {"grpc": server.grpc_url, "http": server.http_url}, server.metrics_url, server.pid
        )


@pytest.mark.slow
@pytest.mark.parametrize("caller", ["grpc", "http"])
def test_overload_loses_nothing(impatient, caller, tmp_path):
    """Three times of what the server can: each call is answered rightly, or refused."""
    ramp = LoadSettings(callers=(caller,), shape="ramp", users=16, seconds=5, warm_up_s=1)
    capacity = capacity_of(run_load(ramp, impatient, tmp_path / "ramp"))
    flood = LoadSettings(
        callers=(caller,), loop="open", rate=3 * capacity, users=1, seconds=6, warm_up_s=0
    )
    run = run_load(flood, impatient, tmp_path / "flood")
    found = figures_of(run, None)
    assert run.not_sent == 0
    assert run.sent == found["right"] + found["refused"], found
    assert found["refused"] > 0.2 * run.sent
    # It goes on working meanwhile, though most of what it works at is refused.
    assert found["right"] > 0.3 * capacity * 6
    assert np.max(run.samples.latency_s) < 10


@pytest.mark.slow
def test_the_matrix_on_a_small_scale(tmp_path):
    folder = tmp_path / "matrix"
    command = [sys.executable, "-m", "bertron_loadtest", "matrix", "--seconds-a-cell", "1"]
    command += ["--most-texts-a-call", "4", "--output", str(folder)]
    command += ["--model-repository", str(MODEL_REPOSITORY)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (folder / "matrix.csv").read_text("utf-8").splitlines()
    assert len(lines) == 1 + 5 + 2 + 6
    assert Path(folder / "matrix.md").read_text("utf-8").count("| tokens |") == 5
