"""What the server's metrics say of tokens, padding and batches is what was computed, exactly."""

import contextlib
import http.client
import itertools
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from bertron_backend.batch_metrics import PERIOD_S
from bertron_client import BertronError, Client, InvalidInputError
from bertron_loadtest.observation import Observer
from bertron_server.server import EXIT_MARGIN_S, TritonServer
from real_server import MODEL_REPOSITORY, TEXTS, TIMEOUT_S

pytestmark = pytest.mark.timeout(180)

LATE_S = 3.0
EXIT_TIMEOUT_S = 10
BOUNDS = (*(str(2**power) for power in range(4, 15)), "+Inf")


def metrics_of(server: TritonServer) -> Counter:
    observer = Observer(server.http_url, "text_embedding", metrics_url=server.metrics_url)
    deadline_s = time.monotonic() + LATE_S
    while not (found := observer.look().metrics):  # its endpoint is the last to be opened
        assert time.monotonic() < deadline_s, f"no metrics within {LATE_S} s"
    assert set(found) == {
        *("bertron_tokens_total", "bertron_padded_tokens_total", "bertron_texts_total"),
        *("bertron_batch_tokens_count", "bertron_batch_tokens_sum"),
        *(f'bertron_batch_tokens_bucket{{le="{bound}"}}' for bound in BOUNDS),
    }
    return Counter(found)


def growth_during(server: TritonServer, load: Callable[[], int]) -> Counter:
    """By how much each counter grew when as many texts as ``load`` says had come, and no more."""
    time.sleep(PERIOD_S + 0.3)  # what came before is in
    before = metrics_of(server)
    texts = load()
    deadline_s = time.monotonic() + LATE_S
    while metrics_of(server)["bertron_texts_total"] - before["bertron_texts_total"] < texts:
        assert time.monotonic() < deadline_s, f"not within {LATE_S} s"
        time.sleep(0.05)
    time.sleep(PERIOD_S + 0.3)  # nothing comes after it
    return metrics_of(server) - before


def expected_growth(*batches: np.ndarray) -> Counter:
    """From the tokens of each text of each batch."""
    sums = [int(lengths.sum()) for lengths in batches]
    buckets = {
        f'bertron_batch_tokens_bucket{{le="{bound}"}}': sum(s <= float(bound) for s in sums)
        for bound in BOUNDS
    }
    padded = sum(len(lengths) * int(lengths.max()) for lengths in batches)
    return +Counter(
        bertron_tokens_total=sum(sums),
        bertron_padded_tokens_total=padded,
        bertron_texts_total=sum(map(len, batches)),
        bertron_batch_tokens_count=len(batches),
        bertron_batch_tokens_sum=sum(sums),
        **buckets,
    )


def executions_of_bert(server: TritonServer) -> int:
    with grpcclient.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        return client.get_inference_statistics("bert").model_stats[0].execution_count


def embed_under_load(server: TritonServer, calls: int, threads: int = 16) -> list[np.ndarray]:
    """Tokens of each text of each call; calls of 1 to 5 texts, ``threads`` at a time."""
    lengths: list[np.ndarray] = []

    def ask(seed: int) -> None:
        random = np.random.default_rng(seed)
        with Client(server.grpc_url, timeout_s=TIMEOUT_S) as client:
            for _ in range(calls):
                rows = random.integers(0, len(TEXTS), random.integers(1, 6))
                lengths.append(client.embed([TEXTS[row] for row in rows]).token_counts)

    workers = [threading.Thread(target=ask, args=(seed,)) for seed in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(TIMEOUT_S)
    assert len(lengths) == calls * threads
    return lengths


def test_requests_one_by_one_are_counted_to_the_token(server, client):
    sizes = (1, 1, 2, 5, 40, 64, 3)
    texts = iter(itertools.cycle(TEXTS))
    batches = []

    def load() -> int:
        for size in sizes:
            answer = client.embed(list(itertools.islice(texts, size)))
            batches.append(answer.token_counts)
        with pytest.raises(InvalidInputError):  # nothing of it is computed
            client.embed(["word " * 600], truncate="error")
        return sum(sizes)

    grown = growth_during(server, load)
    assert grown == expected_growth(*batches)
    assert grown["bertron_padded_tokens_total"] > grown["bertron_tokens_total"]


def test_a_request_for_counts_alone_goes_through_the_encoder(server, client):
    """Triton server leaves out steps that nobody needs, and then tokens wait that never come."""
    texts = np.array([[text.encode()] for text in TEXTS[:4]], dtype=np.object_)
    asked = grpcclient.InferInput("TEXT", [*texts.shape], "BYTES")
    asked.set_data_from_numpy(texts)
    found = []

    def load() -> int:
        with grpcclient.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as plain:
            for name in ("TOKEN_COUNT", "TRUNCATED"):
                output = grpcclient.InferRequestedOutput(name)
                answer = plain.infer("text_embedding", [asked], outputs=[output])
                found.append(answer.as_numpy(name)[:, 0])
        return 2 * len(texts)

    grown = growth_during(server, load)
    known = client.embed(TEXTS[:4])
    assert grown == expected_growth(known.token_counts, known.token_counts)
    assert (found[0] == known.token_counts).all()
    assert (found[1] == known.truncated).all()


def test_joined_batches_under_load_lose_no_token(server):
    calls: list[np.ndarray] = []
    before: list[int] = []

    def load() -> int:
        before.append(executions_of_bert(server))
        calls.extend(embed_under_load(server, calls=10))
        return sum(map(len, calls))

    grown = growth_during(server, load)
    each_alone = expected_growth(*calls)
    same = ("bertron_tokens_total", "bertron_texts_total", "bertron_batch_tokens_sum")
    assert {name: grown[name] for name in same} == {name: each_alone[name] for name in same}
    assert grown["bertron_padded_tokens_total"] > each_alone["bertron_padded_tokens_total"]
    batches = executions_of_bert(server) - before[0]
    assert grown["bertron_batch_tokens_count"] == batches < len(calls) / 2
    buckets = [grown[f'bertron_batch_tokens_bucket{{le="{bound}"}}'] for bound in BOUNDS]
    assert buckets == sorted(buckets)
    assert buckets[-1] == batches


@pytest.mark.slow
def test_two_instances_count_together_and_end_cleanly_under_load(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    repository = tmp_path / "models"
    shutil.copytree(MODEL_REPOSITORY, repository, ignore=shutil.ignore_patterns("model.pt", "*.md"))
    (repository / "bert/1/model.pt").symlink_to(MODEL_REPOSITORY / "bert/1/model.pt")
    config = repository / "bert/config.pbtxt"
    one, two = "instance_group [ { count: 1 } ]", "instance_group [ { kind: KIND_CPU count: 2 } ]"
    assert one in config.read_text()
    config.write_text(config.read_text().replace(one, two))
    log = tmp_path / "tritonserver.log"
    with TritonServer(repository, log_path=log, exit_timeout_s=EXIT_TIMEOUT_S) as server:
        assert set(metrics_of(server).values()) == {0}  # the warm-up's are not counted
        instances, parts = ("bert_0_0", "bert_0_1"), ("fixed", "token", "pair")
        assert _costs(server) == set(itertools.product(instances, parts))
        (weights,) = (tmp_path / "temporary").glob("bertron-weights-*/*")
        assert _processes_that_map(weights) == 2
        calls: list[np.ndarray] = []

        def load() -> int:
            calls.extend(embed_under_load(server, calls=3))
            return sum(map(len, calls))

        grown = growth_during(server, load)
        assert grown["bertron_tokens_total"] == expected_growth(*calls)["bertron_tokens_total"]
        assert grown["bertron_batch_tokens_count"] == executions_of_bert(server)

        stopping = threading.Event()
        neighbours = [
            threading.Thread(target=_embed_until, args=(server, stopping)) for _ in range(8)
        ]
        for neighbour in neighbours:
            neighbour.start()
        time.sleep(2 * PERIOD_S)
        server.terminate()
        stopping.set()  # those accepted are answered
        code = server.wait(EXIT_TIMEOUT_S + EXIT_MARGIN_S)
        for neighbour in neighbours:
            neighbour.join(TIMEOUT_S)
        assert code == 0, server.log_tail()
    assert "rror when deleting Metric" not in log.read_text()
    assert not weights.exists()


def test_a_real_server_is_observed_part_by_part(server, client):
    url = server.http_url
    with Observer(url, "text_embedding", server_pid=server.pid, period_s=0.1) as observer:
        client.embed(TEXTS[:7])
        client.embed(TEXTS[:3])
        time.sleep(0.5)  # a request is counted after its answer is sent
    first, last = observer.snapshots[0], observer.snapshots[-1]
    for role in ("ensemble", "tokenizer", "bert"):
        before, after = first.steps[role], last.steps[role]
        assert (after.requests - before.requests, after.texts - before.texts) == (2, 10)
        assert after.executions - before.executions == 2
        assert after.total_ns > before.total_ns
    sizes = Counter(last.steps["bert"].batch_sizes) - Counter(first.steps["bert"].batch_sizes)
    assert sizes == {7: 1, 3: 1}
    over_grpc = Observer(server.grpc_url, "text_embedding").look()
    assert over_grpc.steps == last.steps
    assert set(last.processes) == {"tritonserver", "tokenizer", "bert"}
    assert last.processes["bert"].cpu_s > first.processes["bert"].cpu_s
    memory = {name: use.memory_bytes for name, use in last.processes.items()}
    assert memory["bert"] > 100e6 > memory["tokenizer"] > 10e6


def _embed_until(server: TritonServer, stopping: threading.Event) -> None:
    with (
        contextlib.suppress(BertronError),  # the server goes away
        Client(server.grpc_url, timeout_s=TIMEOUT_S) as client,
    ):
        while not stopping.is_set():
            client.embed(TEXTS[:4])


def _processes_that_map(file: Path) -> int:
    inode, found = str(file.stat().st_ino), 0
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            lines = maps.read_text().splitlines()
            found += any(line.split()[4] == inode and "bertron-weights" in line for line in lines)
    return found


def _costs(server: TritonServer) -> set[tuple[str, str]]:
    """Instance and part of each ``bertron_forward_cost_ms``."""
    connection = http.client.HTTPConnection("127.0.0.1", server.metrics_port, timeout=TIMEOUT_S)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        page = connection.getresponse().read().decode()
    labels = r'\{model="bert",model_instance="(\w+)",part="(\w+)"\}'
    return set(re.findall(rf"^bertron_forward_cost_ms{labels}", page, re.MULTILINE))
