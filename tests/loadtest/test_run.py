"""The command ``run``, with Locust, against a server that is right, or broken in one way."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from bertron_client import Client
from bertron_loadtest.answers import KnownVectors
from bertron_loadtest.run_record import Run
from bertron_loadtest.workload import make_workload
from fake_triton_server import FakeTritonServer, closed_port_url

# What a good server keeps here with ease; each broken one below fails just what its fault is.
THRESHOLDS = """
[all]
wrong = { max = 0 }
unanswered = { max = 0 }
error_share = { max = 0.01 }
[steady]
p50_ms = { max_times_baseline = 1.5 }
refused_share = { max = 0 }
"""
DELAY_S = 0.04


@pytest.fixture(scope="module")
def server():
    with FakeTritonServer() as running:
        yield running


@pytest.fixture
def healthy(server):
    """The server, which the test may break: it is mended afterwards."""
    server.behaviour.delay_s = DELAY_S
    yield server
    server.behaviour.fault = None
    server.behaviour.fault_share = 1.0
    server.behaviour.released.set()


@pytest.fixture(scope="module")
def thresholds(tmp_path_factory):
    path = tmp_path_factory.mktemp("thresholds") / "thresholds.toml"
    path.write_text(THRESHOLDS, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def known(server, tmp_path_factory):
    """Vectors of the server while it was right."""
    path = tmp_path_factory.mktemp("known") / "known.npz"
    texts = make_workload("short").known_texts
    with Client(server.http_url) as client:
        KnownVectors(texts, np.asarray(client.embed(texts))).save(path)
    return path


def load(*arguments, seconds=2, users=4):
    command = [sys.executable, "-m", "bertron_loadtest", "run", "--seconds", str(seconds)]
    command += ["--users", str(users), "--warm-up-s", "1", "--timeout-s", "1.5"]
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def baseline(server, known, thresholds, tmp_path_factory):
    folder = tmp_path_factory.mktemp("baseline") / "run"
    server.behaviour.delay_s = DELAY_S
    done = load("--url", server.grpc_url, "--output", folder)
    assert (folder / "run.json").exists(), done.stderr
    return folder


def judged(server, known, thresholds, baseline, folder, *arguments):
    """Exit code, and the failed thresholds as the report has them."""
    done = load(
        *("--url", server.grpc_url, "--known-vectors", known, "--thresholds", thresholds),
        *("--baseline", baseline, "--output", folder, *arguments),
    )
    assert (folder / "report.html").exists(), done.stdout + done.stderr
    figures = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    failed = {verdict["figure"] for verdict in figures["verdicts"] if not verdict["passed"]}
    assert ("FAILED" if failed else "PASSED") in done.stdout
    return done.returncode, failed


def test_a_good_server_keeps_every_threshold(healthy, known, thresholds, baseline, tmp_path):
    code, failed = judged(healthy, known, thresholds, baseline, tmp_path / "run")
    assert (code, failed) == (0, set())


def test_wrong_rows_fail(healthy, known, thresholds, baseline, tmp_path):
    healthy.behaviour.fault, healthy.behaviour.fault_share = "mixed_up", 0.5
    code, failed = judged(
        healthy, known, thresholds, baseline, tmp_path / "run", "--texts-a-call", "8"
    )
    assert code == 1
    assert failed == {"wrong", "error_share"}


def test_dropped_answers_fail(healthy, known, thresholds, baseline, tmp_path):
    healthy.behaviour.fault, healthy.behaviour.fault_share = "never", 0.05
    healthy.behaviour.released.clear()
    code, failed = judged(healthy, known, thresholds, baseline, tmp_path / "run")
    assert code == 1
    assert {"unanswered"} <= failed <= {"unanswered", "error_share"}


def test_five_percent_of_errors_fail(healthy, known, thresholds, baseline, tmp_path):
    healthy.behaviour.fault, healthy.behaviour.fault_share = "internal", 0.05
    code, failed = judged(healthy, known, thresholds, baseline, tmp_path / "run")
    assert (code, failed) == (1, {"error_share"})


def test_doubled_latency_fails(healthy, known, thresholds, baseline, tmp_path):
    healthy.behaviour.delay_s = 2 * DELAY_S
    code, failed = judged(healthy, known, thresholds, baseline, tmp_path / "run")
    assert (code, failed) == (1, {"p50_ms"})


def test_refusals_fail_where_there_should_be_none(healthy, known, thresholds, baseline, tmp_path):
    healthy.behaviour.fault, healthy.behaviour.fault_share = "busy", 0.2
    code, failed = judged(healthy, known, thresholds, baseline, tmp_path / "run")
    assert (code, failed) == (1, {"refused_share"})


def test_every_call_is_accounted_for(healthy, tmp_path):
    """What the load generator counted is what the server saw, refused and answered."""
    healthy.behaviour.fault, healthy.behaviour.fault_share = "busy", 0.3
    before = len(healthy.behaviour.requests)
    load(
        *("--url", healthy.grpc_url, "--url", healthy.http_url, "--output", tmp_path / "run"),
        *("--caller", "grpc", "--caller", "http", "--caller", "raw-grpc", "--caller", "raw-http"),
        *("--known-vectors", _of(healthy, tmp_path)),
        users=8,
    )
    before += 1  # that file's own
    run = Run.load(tmp_path / "run")
    assert run.sent == len(run.samples) == len(healthy.behaviour.requests) - before
    assert set(run.samples.caller) == {"grpc", "http", "raw-grpc", "raw-http"}
    refused = sum(request.fault == "busy" for request in healthy.behaviour.requests[before:])
    assert sum(run.samples.outcome == "refused") == refused > 10
    assert sum(run.samples.outcome == "right") == run.sent - refused


def _of(server, folder):
    path = folder / "known.npz"
    fault, server.behaviour.fault = server.behaviour.fault, None
    texts = make_workload("short").known_texts[:8]
    with Client(server.http_url) as client:
        KnownVectors(texts, np.asarray(client.embed(texts))).save(path)
    server.behaviour.fault = fault
    return path


def test_an_open_loop_keeps_its_rate_however_slow_the_answers(healthy, tmp_path):
    healthy.behaviour.delay_s = 0.4
    done = load(
        *("--url", healthy.grpc_url, "--output", tmp_path / "run"),
        *("--loop", "open", "--rate", 40),
        seconds=5,
    )
    run = Run.load(tmp_path / "run")
    phase = run.phases[-1]
    arrived = np.sum((run.samples.due_s >= phase.start_s) & (run.samples.due_s < phase.end_s))
    # A Poisson process of 200 arrivals is within 5 standard deviations.
    assert 130 < arrived < 270, done.stdout
    assert healthy.behaviour.most_in_flight > 8
    assert run.not_sent == 0
    gaps = np.diff(np.sort(run.samples.due_s))
    assert 0.7 < np.std(gaps) / np.mean(gaps) < 1.3  # 1 for a Poisson process, 0 for a metronome


def test_a_ramp_stops_where_the_server_is_saturated(healthy, tmp_path):
    """The fake server takes 64 requests at a time, each for 0.4 s."""
    healthy.behaviour.delay_s = 0.4
    done = load(
        *("--url", healthy.grpc_url, "--output", tmp_path / "run"),
        *("--shape", "ramp"),
        seconds=36,
        users=2048,
    )
    run = Run.load(tmp_path / "run")
    steps = [phase.users for phase in run.phases if phase.name != "warm-up"]
    assert steps[:7] == [1, 2, 4, 8, 16, 32, 64], done.stdout + done.stderr
    # 128 users may still gain a little: the step to 64 loses its first calls' 0.4 s.
    assert steps[-1] < 2048
    assert (tmp_path / "run" / "saturation.svg").exists()


def test_several_workers_make_one_run(healthy, tmp_path):
    done = load(
        *("--url", healthy.grpc_url, "--output", tmp_path / "run", "--workers", "2"),
        seconds=4,
    )
    run = Run.load(tmp_path / "run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert run.sent == len(run.samples) > 4 / DELAY_S
    assert {"load_worker_0", "load_worker_1"} <= {
        name.replace(" ", "_") for snapshot in run.snapshots for name in snapshot.processes
    }
    asked = [tuple(request.texts) for request in healthy.behaviour.requests[-run.sent :]]
    assert len(set(asked)) > 50  # workers' users have texts of their own


@pytest.mark.parametrize(("number_killed", "calls_before"), [(1, 60), (2, 60), (1, 400)])
def test_a_worker_that_is_lost_fails_the_run(healthy, tmp_path, number_killed, calls_before):
    """At once, or where the run ends before it is missed."""
    healthy.behaviour.requests.clear()
    command = [sys.executable, "-m", "bertron_loadtest", "run", "--url", healthy.grpc_url]
    command += ["--seconds", "5", "--users", "4", "--warm-up-s", "1", "--timeout-s", "1.5"]
    command += ["--workers", "2", "--output", str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        await_calls(healthy, calls_before)
        workers = [
            process
            for process in psutil.Process(running.pid).children(recursive=True)
            if "--worker" in process.cmdline()
        ]
        assert len(workers) == 2
        for worker in workers[:number_killed]:
            worker.kill()
        said, _ = running.communicate(timeout=120)
    assert running.returncode == 1
    lost = re.search(r"^failed: .*load workers were lost.*: (.+)$", said, re.MULTILINE)
    assert lost, said
    assert len(lost[1].split(", ")) == number_killed


def await_calls(server, number):
    limit_s = time.monotonic() + 60
    while len(server.behaviour.requests) < number:
        assert time.monotonic() < limit_s
        time.sleep(0.02)


def test_a_server_that_is_absent_fails_and_says_so(tmp_path):
    done = load("--url", closed_port_url("grpc"), "--output", tmp_path / "run")
    assert done.returncode == 1
    assert "ServerUnavailableError" in done.stdout + done.stderr
    assert "FAILED" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--url", "https://x:1"], "one of each is wanted"),
        (["--url", "http://x:1", "--url", "http://y:1"], "one of each is wanted"),
        (["--url", "http://x:1", "--caller", "grpc"], "--caller wants a grpc url"),
        (["--loop", "open"], "a rate, here 0, is for an open loop"),
        (["--rate", "5"], "a rate, here 5, is for an open loop"),
        (["--users", "0"], "0 users"),
        (["--texts", "/nowhere"], "/nowhere"),
        (["--thresholds", "/nowhere"], "/nowhere"),
        (["--baseline", "/nowhere"], "/nowhere"),
    ],
)
def test_a_wrong_command_is_refused_in_a_line(arguments, words, tmp_path):
    done = load(*arguments, "--output", tmp_path / "run")
    assert done.returncode == 1
    assert re.search(re.escape(words), done.stderr)
    assert "Traceback" not in done.stderr
    assert not Path(tmp_path / "run").exists()
