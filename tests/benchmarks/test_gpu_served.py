"""What is served on a GPU and how its loads are counted, without one."""

import subprocess

import gpu_served
import pytest
import torch
from google.protobuf import text_format
from gpu_callers import Load, call_until
from gpu_report import Row, served_table
from gpu_timing import Budget
from tokenizers import Tokenizer
from tritonclient.grpc import model_config_pb2

DEADLINE_S = 120


def test_made_up_texts_have_the_lengths_that_were_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(gpu_served.gpu_models.SIZES, gpu_served.MODEL, (1, 32, 2, 64))
    gpu_served.write_checkpoint(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    lengths = [3, 128, 7]
    texts = gpu_served.made_up_texts(lengths)
    encodings = tokenizer.encode_batch(texts)
    assert [len(encoding.ids) for encoding in encodings] == lengths
    for encoding in encodings:
        assert encoding.ids[0] == 101
        assert encoding.ids[-1] == 102
        assert min(encoding.ids[1:-1]) >= gpu_served.gpu_models.FIRST_ID
    assert gpu_served.made_up_texts(lengths) == texts
    vectors = gpu_served.expected_vectors(tmp_path, texts, torch.device("cpu"))
    assert vectors.shape == (3, 32)
    # Padding must not matter: alone each is what it is beside a longer one.
    alone = gpu_served.expected_vectors(tmp_path, texts[:1], torch.device("cpu"))
    assert abs(vectors[0] - alone[0]).max() < 1e-9


def test_nothing_is_in_the_way_here_and_an_uninstalled_checkout_would_be(monkeypatch):
    assert gpu_served.obstacle() == ""
    failed = subprocess.CompletedProcess([], returncode=1)
    monkeypatch.setattr(gpu_served.subprocess, "run", lambda *_, **_options: failed)
    assert "ignores PYTHONPATH" in gpu_served.obstacle()


def test_stages_are_a_requests_mean_between_two_readings():
    before = {"tokenizer": (10, 100.0, 1000.0), "bert": (10, 50.0, 500.0)}
    after = {"tokenizer": (14, 300.0, 1800.0), "bert": (10, 50.0, 500.0)}
    words = gpu_served.stages_between(before, after)
    assert words == "tokenizer 50 us in the queue, 200 us in it"


def counts(repository):
    """Processes by step, as Triton server reads them."""
    found = {}
    for step in ("tokenizer", "bert"):
        text = (repository / step / "config.pbtxt").read_text()
        (group,) = text_format.Parse(text, model_config_pb2.ModelConfig()).instance_group
        found[step] = group.count
    return found


def test_a_load_is_measured_on_the_real_server_in_each_setting(monkeypatch):
    """All that a GPU machine runs, with a small model, a single load and shorter times."""
    monkeypatch.setitem(gpu_served.gpu_models.SIZES, gpu_served.MODEL, (1, 32, 2, 64))
    monkeypatch.setattr(gpu_served, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_served, "BEGIN_S", 2.0)
    monkeypatch.setattr(gpu_served, "MEASURED_S", 1.0)
    first, second = gpu_served.Setting(1, 1, [(2, 1)]), gpu_served.Setting(2, 1, [(2, 1)])
    monkeypatch.setattr(gpu_served, "SETTINGS", (first, second))
    written = []
    write = gpu_served.Setting.write

    def noting(setting, repository):
        write(setting, repository)
        written.append(counts(repository))

    monkeypatch.setattr(gpu_served.Setting, "write", noting)
    rows, notes = [], []
    gpu_served.measure_all(Budget(DEADLINE_S), rows.append, notes.append, quick=False)
    assert written == [{"tokenizer": 1, "bert": 1}, {"tokenizer": 2, "bert": 1}]
    assert [row.engine for row in rows] == ["tokenizer x 1, bert x 1", "tokenizer x 2, bert x 1"]
    for row in rows:
        assert row.problem == ""
        assert row.ms > 0
        assert row.cosine > 0.99999
        assert "us in it; bert" in row.note
    assert sum("warmed up in" in note for note in notes) == 2


class Answering:
    """A client whose calls take no time."""

    def __init__(self, url):
        assert url == "grpc://127.0.0.1:1"

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        pass

    def embed(self, texts):
        assert len(texts) == 2


class Refusing(Answering):
    def embed(self, _texts):
        raise ConnectionError("gone")


def load(begins, ends):
    return Load("grpc://127.0.0.1:1", 3, 2, ["a", "b", "c"], begins, ends)


def clock(monkeypatch, times):
    monkeypatch.setattr("gpu_callers.time.time", iter(times).__next__)


def test_only_calls_that_end_in_their_time_are_counted(monkeypatch):
    monkeypatch.setattr("gpu_callers.Client", Answering)
    one = Load("grpc://127.0.0.1:1", 1, 2, ["a", "b", "c"], 10.0, 20.0)
    # Asked before each call, at its start and at its end: too early, counted, too late, over.
    clock(monkeypatch, [8, 8, 9, 11, 11, 12, 19, 19, 21, 21])
    assert call_until(one) == (2, [1])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_callers_that_break_off_are_an_error(monkeypatch):
    monkeypatch.setattr("gpu_callers.Client", Refusing)
    with pytest.raises(RuntimeError, match="3 of 3 callers broke off"):
        call_until(load(0.0, 1e12))


def test_the_table_shows_percentiles_and_stages():
    row = Row("served", "MiniLM-L6", "32 x 1 text", "float16", "bert x 2", is_ours=True)
    row.times_ms, row.latencies_ms = [0.5], [float(n) for n in range(1, 101)]
    row.cosine, row.note = 0.99999, "bert 5 us in the queue, 9 us in it"
    table = served_table([row], None)
    assert "| 2000 | 50.50 | 99.01 | 0.9999900 |" in table
    assert table.endswith(
        "- 32 x 1 text, bert x 2, a request's mean: bert 5 us in the queue, 9 us in it."
    )
    row.problem = "cosine 0.9"
    assert "FAILED: cosine 0.9" in served_table([row], None)
