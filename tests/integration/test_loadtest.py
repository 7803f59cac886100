"""The load tests against the real server: `make loadtest` in ten seconds."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from real_server import MODEL_REPOSITORY

# A busy machine may answer late; it may not answer wrongly, nor lose anything.
TIMING = {"usual_p99_over_p50", "p99_over_p50", "generator_lag_p99_ms", "texts_per_s"}


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
