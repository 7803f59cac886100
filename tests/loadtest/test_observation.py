"""What the observer sees, and that nothing it looks at can stop it."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from bertron_client import Client
from bertron_loadtest import observation
from bertron_loadtest.observation import Observer
from deadlines import ends_within
from fake_triton_model import COMPUTE_NS, QUEUE_NS
from fake_triton_server import FakeTritonServer, RawServer, closed_port_url

pytestmark = pytest.mark.timeout(60)

STEP_NS = sum(COMPUTE_NS.values())
PAGE = """\
# HELP bertron_tokens_total Tokens computed, without padding
# TYPE bertron_tokens_total counter
bertron_tokens_total{model="bert",model_instance="bert_0_0"} 120
bertron_tokens_total{model="bert",model_instance="bert_0_1"} 3.5e+02
bertron_tokens_total{model="mini_bert",model_instance="mini_bert_0_0"} 7
bertron_batch_tokens_bucket{le="64",model="bert",model_instance="bert_0_0"} 2
bertron_batch_tokens_bucket{le="+Inf",model="bert",model_instance="bert_0_0"} 3
bertron_forward_cost_ms{model="bert",model_instance="bert_0_0",part="fixed"} 3.5
nv_inference_count{model="bert",version="1"} 40
nv_pinned_memory_pool_total_bytes 0
"""


@contextlib.contextmanager
def http_page(text: str, status: int = 200) -> Iterator[str]:
    """A url that answers every GET with one text."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.005,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@contextlib.contextmanager
def child(code: str, name: str = "python", *arguments: str) -> Iterator[subprocess.Popen]:
    """A process with a name of its own that has said "ready"."""
    script = f"open('/proc/self/comm', 'w').write({name!r})\n{code}"
    command = [sys.executable, "-c", script, *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.stdin.close()  # ends what waits for a line
        process.wait(20)
        process.stdout.close()


WAITS = "print('ready', flush=True); __import__('sys').stdin.readline()"
BURNS = f"import time\nwhile time.process_time() < 0.3: pass\n{WAITS}"
HOLDS = f"held = bytearray(b'x') * 100_000_000\n{WAITS}"


@pytest.fixture(params=["http", "grpc"])
def protocol(request):
    return request.param


def test_the_ensemble_and_its_steps_are_seen_by_their_roles(protocol):
    with FakeTritonServer() as server:
        with Client(server.url(protocol)) as client:
            client.embed(["one", "two", "three"])
            client.embed(["four"])
        steps = Observer(server.url(protocol), "text_embedding").look().steps
    assert set(steps) == {"ensemble", "tokenizer", "bert"}
    for step in steps.values():
        assert (step.requests, step.failures, step.texts, step.executions) == (2, 0, 4, 2)
        assert (step.total_ns, step.queue_ns) == (2 * (QUEUE_NS + STEP_NS), 2 * QUEUE_NS)
    assert steps["bert"].compute_ns == steps["tokenizer"].compute_ns == 2 * STEP_NS
    assert steps["bert"].batch_sizes == {1: 1, 3: 1}
    assert (steps["ensemble"].compute_ns, steps["ensemble"].batch_sizes) == (0, {})


def test_failures_are_counted(protocol):
    with FakeTritonServer() as server:
        server.behaviour.fault = "invalid"
        with (
            Client(server.url(protocol)) as client,
            pytest.raises(Exception, match="not to my liking"),
        ):
            client.embed(["a text"])
        steps = Observer(server.url(protocol), "text_embedding").look().steps
    assert (steps["ensemble"].requests, steps["ensemble"].failures) == (0, 1)


def test_another_models_steps_have_its_name_before_them(protocol):
    with FakeTritonServer() as server:
        assert Observer(server.url(protocol), "mini").look().steps == {}
        tallies = server.behaviour.tallies
        tallies |= {"mini": tallies["bert"], "mini_bert": tallies["bert"]}
        steps = Observer(server.url(protocol), "mini").look().steps
    assert set(steps) == {"ensemble", "bert"}


def test_statistics_with_numbers_as_strings_are_read():
    with FakeTritonServer() as server:
        server.behaviour.numbers_as_strings = True
        with Client(server.http_url) as client:
            client.embed(["a text"])
        steps = Observer(server.http_url, "text_embedding").look().steps
    assert (steps["bert"].requests, steps["bert"].batch_sizes) == (1, {1: 1})


def test_bertrons_counters_of_one_model_are_summed_over_its_instances():
    with http_page(PAGE) as url:
        bert = Observer(closed_port_url("http"), "text_embedding", metrics_url=url).look()
        mini = Observer(closed_port_url("http"), "mini", metrics_url=url).look()
    assert bert.steps == {}
    assert bert.metrics == {
        "bertron_tokens_total": 470,
        'bertron_batch_tokens_bucket{le="64"}': 2,
        'bertron_batch_tokens_bucket{le="+Inf"}': 3,
    }
    assert mini.metrics == {"bertron_tokens_total": 7}


def test_snapshots_come_at_the_beginning_each_period_and_at_the_end():
    with FakeTritonServer() as server, Client(server.http_url) as client:
        with Observer(server.http_url, "text_embedding", period_s=0.1) as observer:
            client.embed(["a text"])
            time.sleep(1.0)
            client.embed(["a text", "another"])
        snapshots = observer.snapshots
    times = [snapshot.time_s for snapshot in snapshots]
    assert times == sorted(times)
    assert 0.9 <= times[-1] - times[0] < 2
    assert 6 <= len(snapshots) <= 14  # 12 on an idle machine
    texts = [snapshot.steps["bert"].texts for snapshot in snapshots]
    assert (texts[0], texts[-1]) == (0, 3)
    assert texts == sorted(texts)
    assert 1 in texts


def test_a_server_that_goes_and_comes_back_is_seen_again(protocol):
    url, ports = closed_port_url(protocol), {}
    ports[f"{protocol}_port"] = int(url.rpartition(":")[2])
    with Observer(url, "text_embedding", period_s=0.05) as observer:
        with FakeTritonServer(**ports):
            _wait_until(lambda: observer.snapshots[-1].steps)
        _wait_until(lambda: not observer.snapshots[-1].steps)
        with FakeTritonServer(**ports):
            _wait_until(lambda: observer.snapshots[-1].steps)
    assert not observer.snapshots[0].steps
    assert not observer.snapshots[-1].steps


@pytest.mark.parametrize("fault", ["never", "garbage", "reset", "close", "trickle"])
def test_no_answer_lasts_longer_than_its_time(protocol, fault, monkeypatch):
    monkeypatch.setattr(observation, "TIMEOUT_S", 0.5)
    with RawServer(fault, protocol) as server, RawServer(fault) as page:
        observer = Observer(server.url, "text_embedding", metrics_url=f"{page.url}/metrics")
        with ends_within(2 * 0.5):
            snapshot = observer.look()
    assert (snapshot.steps, snapshot.metrics) == ({}, {})


@pytest.mark.parametrize(
    ("text", "status"),
    [("not found", 404), ("no JSON", 200), ("[]", 200), ('{"model_stats": [{}]}', 200)],
)
def test_who_is_no_triton_server_leaves_steps_and_metrics_empty(text, status):
    with http_page(text, status) as url:
        place = url.removesuffix("/metrics")
        snapshot = Observer(place, "text_embedding", metrics_url=url).look()
    assert (snapshot.steps, snapshot.metrics) == ({}, {})


def test_processes_of_the_server_are_told_apart_and_instances_are_summed():
    stub = "import subprocess, sys\n"
    stub += "run = lambda path, code: subprocess.Popen([sys.executable, '-c', code, path], "
    stub += "stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)\n"
    paths = ["/m/tokenizer/1/model.py", "/m/bert/1/model.py", "/m/bert/1/model.py"]
    paths += ["/m/unknown/1/model.py", "something"]
    stub += f"children = [run(path, {HOLDS!r}) for path in {paths!r}]\n"
    stub += "assert all(child.stdout.readline() for child in children)\n"
    ends = "\nfor child in children: child.communicate('\\n')"
    with child(stub + WAITS + ends, "tritonserver") as server:
        observer = Observer(closed_port_url("http"), "text_embedding", server_pid=server.pid)
        found = observer.look().processes
        server.stdin.write("\n")
    assert set(found) == {"tritonserver", "tokenizer", "bert", "other"}
    assert found["tritonserver"].memory_bytes < 50e6
    assert 100e6 < found["tokenizer"].memory_bytes < 150e6
    assert 200e6 < found["bert"].memory_bytes < 300e6
    assert 200e6 < found["other"].memory_bytes < 300e6


def test_a_watched_process_is_seen_with_its_children_until_it_ends():
    observer = Observer(closed_port_url("http"), "text_embedding", generator_pid=os.getpid())
    own_s = time.process_time()
    with child(BURNS) as busy:
        observer.watch("busy", busy.pid)
        first = observer.look().processes
    assert set(first) == {"load generator", "busy"}
    assert 0.25 < first["busy"].cpu_s < 3  # the kernel counts in hundredths
    assert first["load generator"].cpu_s > own_s + 0.25
    assert set(observer.look().processes) == {"load generator"}


def test_a_server_that_has_ended_leaves_processes_empty():
    with child(WAITS) as server:
        pid = server.pid
    observer = Observer(closed_port_url("http"), "text_embedding", server_pid=pid)
    assert observer.look().processes == {}


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", ""])
def test_what_is_no_url_is_refused(url):
    with pytest.raises(ValueError, match="is no url to look at a server by"):
        Observer(url, "text_embedding")
    with pytest.raises(ValueError, match="http:// or https:// is wanted"):
        Observer("grpc://host", "text_embedding", metrics_url=url)


def _wait_until(is_so, limit_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < deadline_s, f"not within {limit_s} s"
        time.sleep(0.01)
