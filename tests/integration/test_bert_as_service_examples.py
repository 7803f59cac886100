"""The examples of examples/bert_as_service, as a user runs them, against the real server."""

import re
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from bertron_client.bert_as_service import BertClient
from real_server import ROOT, TEXTS, TIMEOUT_S

EXAMPLES = ROOT / "examples" / "bert_as_service"
# Every warning is an error, but for one of Python's: torch's DataLoader leaves its queues' threads
# running, and one that unlinks a semaphore as the interpreter ends may not live to say so.
WARNINGS = ["-W", "error", "-W", "ignore::UserWarning:multiprocessing.resource_tracker"]


def run(name, *arguments, timeout_s=120):
    """What an example prints."""
    done = subprocess.run(
        [sys.executable, *WARNINGS, str(EXAMPLES / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_1_throughput(server):
    printed = run("example1_throughput.py", "--url", server.grpc_url, "--calls", 3)
    rows = [line.split() for line in printed.splitlines()[1:]]
    assert [int(row[0]) for row in rows] == [16, 32, 64]
    for _, seconds, texts_per_s, tokens_per_s in rows:
        assert float(seconds) > 0
        assert float(tokens_per_s) > 5 * float(texts_per_s) > 0  # no demo batch is that short


def test_2_without_waiting(server):
    printed = run("example2_without_waiting.py", "--url", server.grpc_url, "--batches", 6)
    assert "fetch_all: 48 texts, 384 numbers each" in printed
    assert "request 7 has the vectors of fetch_all: True" in printed
    assert "encode_async: 48 texts" in printed


def test_3_several_receivers(server):
    printed = run("example3_several_receivers.py", "--url", server.http_url, "--receivers", 4)
    assert re.findall(r"receiver (\d) got (\d) vectors", printed) == [(n, "6") for n in "1234"]


@pytest.mark.parametrize("workers", [0, 2])
def test_4_data_loader(server, workers):
    printed = run("example4_data_loader.py", "--url", server.grpc_url, "--workers", workers)
    assert printed == f"60 of 60 texts in 4 batches by {workers} workers\n"


def test_5_classifier(server):
    printed = run("example5_classifier.py", "--url", server.grpc_url)
    assert "trained on 45 texts of 4 labels" in printed
    assert float(re.search(r"accuracy on 15 others: (\S+)", printed)[1]) >= 0.7  # chance: 0.25
    assert printed.splitlines()[-1].endswith("is about delivery")


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_6_vectors_to_a_file(server, known, tmp_path, suffix):
    target = tmp_path / f"vectors{suffix}"
    printed = run("example6_vectors_to_a_file.py", target, "--url", server.grpc_url, "--limit", 100)
    assert f"wrote 100 x 384 to {target}" in printed
    assert "is the vector of the last text: True" in printed
    if suffix == ".npy":
        vectors = np.load(target)
    else:
        table = pq.read_table(target)
        assert table["text"].to_pylist() == TEXTS[:100]
        vectors = np.array(table["vector"].to_pylist(), np.float32)
    np.testing.assert_allclose(vectors, known[:100], atol=1e-5)


@pytest.mark.slow
def test_7_layers():
    printed = run("example7_layers.py", "--layers", -1, -3, timeout_s=280)
    assert "exported layer -1: 6 layers are computed" in printed
    assert "exported layer -3: 4 layers are computed" in printed
    table = printed.splitlines()[-2:]
    assert [line.split()[0] for line in table] == ["-1", "-3"]
    for line in table:
        _, share, margin = map(float, line.split())
        assert share > 0.4  # chance: 0.24
        assert margin > 0


def test_8_faq_search(server):
    printed = run("example8_faq_search.py", "--url", server.grpc_url)
    answers = [block.splitlines()[1] for block in printed.strip().split("\n\n")]
    assert "confirmation mail" in answers[0]
    assert "within a week" in answers[1]
    assert "Choose 'forgotten'" in answers[2]
    own = run("example8_faq_search.py", "--url", server.grpc_url, "can I pay by card?", "--top", 1)
    assert "By card, bank transfer or invoice." in own


def test_every_example_is_in_the_list_and_has_a_test():
    names = {path.name for path in EXAMPLES.glob("*.py")}
    assert len(names) == 8
    listed = set(re.findall(r"\((example\w+\.py)\)", (EXAMPLES / "README.md").read_text("utf-8")))
    assert listed == names


def test_the_interface_itself_against_the_real_server(server, known):
    """What the fake server cannot show: real tokens, real lengths, pairs, tokenized texts."""
    url = server.grpc_url
    with BertClient(url=url, timeout=TIMEOUT_S * 1e3) as bc:
        vectors, tokens = bc.encode(TEXTS[:40], show_tokens=True)
        np.testing.assert_allclose(vectors, known[:40], atol=1e-5)
        assert all(text[0] == "[CLS]" and text[-1] == "[SEP]" for text in tokens)
        pieces = [text[1:-1] for text in tokens]
        np.testing.assert_allclose(bc.encode(pieces, is_tokenized=True), vectors, atol=1e-5)
        pair, tokens = bc.encode(["my parcel ||| is late", "alone"], show_tokens=True)
        assert tokens[0] == ["[CLS]", "my", "parcel", "[SEP]", "is", "late", "[SEP]"]
        tokenized = bc.encode([["my", "parcel", "|||", "is", "late"]], is_tokenized=True)
        np.testing.assert_allclose(tokenized, pair[:1], atol=1e-5)
        assert bc.server_config["max_seq_len"] == 256
        assert bc.server_config["pooling_strategy"].name == "REDUCE_MEAN"
        assert bc.server_status["statistic"]["num_total_seq"] >= 40
        # 1.10 counted words, and so took this for one of length 1.
        with pytest.warns(UserWarning, match="1 of 1 texts are longer than the model reads"):
            bc.encode(["木" * 500])
