"""bertron encode against a server on loopback: formats, failures, going on after each of them."""

import argparse
import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from bertron_server import encode
from fake_triton_server import (
    EMBEDDING_SIZE,
    MAX_CHARACTERS,
    FakeTritonServer,
    closed_port_url,
    vector_of,
)

TEXTS = [f"text {i} " + "word " * (i % 5) + "é" for i in range(50)]


@pytest.fixture
def server():
    with FakeTritonServer() as running:
        yield running


@pytest.fixture
def texts_file(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("".join(text + "\n" for text in TEXTS), encoding="utf-8")
    return path


def run(*arguments):
    parser = argparse.ArgumentParser()
    encode.add_arguments(parser)
    return encode.run(parser.parse_args([str(argument) for argument in arguments]))


def expected(texts):
    return np.array([vector_of(text) for text in texts], np.float32).reshape(-1, EMBEDDING_SIZE)


def names(folder: Path):
    return sorted(path.name for path in folder.iterdir())


def failure(capsys):
    """The one line of a failed run, without the progress bar."""
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    (line,) = [line for line in lines if line.startswith("bertron encode:")]
    return line


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_texts_to_npy(server, texts_file, tmp_path, scheme):
    out = tmp_path / "out.npy"
    assert run(texts_file, "--url", server.url(scheme), "--output", out, "--batch", 7) == 0
    vectors = np.load(out)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, expected(TEXTS))
    assert names(tmp_path) == ["out.npy", "texts.txt"]


def test_csv_tsv_and_jsonl_inputs_give_the_same_rows(server, tmp_path):
    texts = ['a "quoted", text', "two\nlines", "", "tab\there"]
    rows = [[str(i), text] for i, text in enumerate(texts)]
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        with (tmp_path / f"in{suffix}").open("w", encoding="utf-8-sig", newline="") as file:
            writer = encode.csv.writer(file, delimiter=delimiter)
            writer.writerows([["id", "said"], *rows])
    lines = [json.dumps({"said": text}) for text in texts]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    for name in ("in.csv", "in.tsv", "in.jsonl"):
        out = tmp_path / f"{name}.npy"
        options = ("--url", server.http_url, "--output", out, "--column", "said")
        assert run(tmp_path / name, *options) == 0
        np.testing.assert_array_equal(np.load(out), expected(texts))


def test_jsonl_output_gives_back_the_same_floats(server, texts_file, tmp_path):
    out = tmp_path / "out.jsonl"
    assert run(texts_file, "--url", server.http_url, "--output", out) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(len(TEXTS)))
    vectors = np.array([row["embedding"] for row in rows], np.float32)
    np.testing.assert_array_equal(vectors, expected(TEXTS))
    assert rows[4]["token_count"] == len(TEXTS[4].split()) + 2
    assert rows[4]["truncated"] is False


def test_parquet_output(server, texts_file, tmp_path, monkeypatch):
    parquet = pytest.importorskip(
        "pyarrow.parquet", reason="no pyarrow that fits this numpy", exc_type=ImportError
    )
    monkeypatch.setattr(encode, "CONVERT_ROWS", 16)  # several row groups, the last not full
    out = tmp_path / "out.parquet"
    assert run(texts_file, "--url", server.grpc_url, "--output", out) == 0
    table = parquet.read_table(out)
    assert table.column_names == ["index", "embedding", "token_count", "truncated"]
    vectors = np.array(table["embedding"].to_pylist(), np.float32)
    np.testing.assert_array_equal(vectors, expected(TEXTS))


def test_parquet_without_pyarrow_says_what_to_install(texts_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert run(texts_file, "--output", tmp_path / "out.parquet") == 1
    assert "pip install 'bertron[parquet]'" in failure(capsys)


@pytest.mark.parametrize("form", ["npy", "jsonl", "parquet"])
def test_an_empty_file_gives_no_rows(server, tmp_path, form):
    if form == "parquet":
        pytest.importorskip("pyarrow", reason="no pyarrow for this numpy", exc_type=ImportError)
    (tmp_path / "empty.txt").touch()
    out = tmp_path / f"out.{form}"
    assert run(tmp_path / "empty.txt", "--url", server.http_url, "--output", out) == 0
    if form == "npy":
        assert np.load(out).shape == (0, EMBEDDING_SIZE)
    assert names(tmp_path) == ["empty.txt", f"out.{form}"]


@pytest.mark.parametrize("form", ["npy", "jsonl"])
def test_a_run_goes_on_after_the_server_died(server, texts_file, tmp_path, capsys, form):
    out = tmp_path / f"out.{form}"
    options = (texts_file, "--url", server.http_url, "--output", out, "--batch", 8)
    server.behaviour.fault = "internal"
    server.behaviour.only_texts_with = "text 20 "
    assert run(*options) == 1
    line = failure(capsys)
    assert f"{texts_file} lines 17 to 24: the forward failed" in line
    assert "16 of 50 rows are kept" in line
    assert not out.exists()
    assert names(tmp_path) == [f"out.{form}.partial", f"out.{form}.progress.json", "texts.txt"]

    server.behaviour.fault = None
    server.behaviour.requests.clear()
    assert run(*options) == 0
    sent = [text for request in server.behaviour.requests for text in request.texts]
    assert sorted(sent) == sorted([TEXTS[0], *TEXTS[16:]])  # the first again, to know the model
    if form == "npy":
        np.testing.assert_array_equal(np.load(out), expected(TEXTS))
    else:
        rows = [json.loads(line)["embedding"] for line in out.read_text().splitlines()]
        np.testing.assert_array_equal(np.array(rows, np.float32), expected(TEXTS))
    assert names(tmp_path) == [f"out.{form}", "texts.txt"]


@pytest.mark.parametrize("scheme", ["http", "grpc"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_goes_on_after_a_signal(server, texts_file, tmp_path, number, scheme):
    out = tmp_path / "out.npy"
    # 10 texts are two requests in flight, 5 would be one
    options = [texts_file, "--url", server.url(scheme), "--output", out, "--batch", 10]
    server.behaviour.delay_s = 0.1
    process = start(*options)
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130)
    if number == signal.SIGINT:
        assert "bertron encode: interrupted; run the same command again to continue" in errors
        assert "Traceback" not in errors
    assert not out.exists()
    server.behaviour.delay_s = 0
    assert run(*options) == 0
    np.testing.assert_array_equal(np.load(out), expected(TEXTS))


def start(*options):
    """The command in a process of its own, as far as its first save."""
    program = (
        "import argparse, sys; from bertron_server import encode; "
        "p = argparse.ArgumentParser(); encode.add_arguments(p); "
        "sys.exit(encode.run(p.parse_args()))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, options)], stderr=subprocess.PIPE, text=True
    )
    progress = options[options.index("--output") + 1].with_suffix(".npy.progress.json")
    deadline = time.monotonic() + 30
    while not progress.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return process


@pytest.mark.skipif(encode.fcntl is None, reason="no locks of files on this platform")
def test_a_second_run_to_the_same_output_is_refused(server, texts_file, tmp_path, capsys):
    out = tmp_path / "out.npy"
    options = [texts_file, "--url", server.http_url, "--output", out, "--batch", 10]
    server.behaviour.delay_s = 0.2
    with start(*options) as first:
        assert run(*options) == 1
        assert f"another run is writing {out}" in failure(capsys)
        other = ["--output", tmp_path / "other.npy"]
        server.behaviour.delay_s = 0
        assert run(*options, *other) == 0
        _, errors = first.communicate(timeout=30)
    assert first.returncode == 0, errors
    np.testing.assert_array_equal(np.load(out), expected(TEXTS))
    assert names(tmp_path) == ["other.npy", "out.npy", "texts.txt"]


@pytest.mark.skipif(encode.fcntl is None, reason="no locks of files on this platform")
def test_an_output_that_another_run_has_just_written_stays(
    server, texts_file, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "out.npy"
    read_records = encode.read_records

    def read_while_another_run_ends(*arguments):
        yield from read_records(*arguments)
        out.write_text("another run's")

    monkeypatch.setattr(encode, "read_records", read_while_another_run_ends)
    assert run(texts_file, "--url", server.http_url, "--output", out) == 1
    assert f"{out} exists; remove it" in failure(capsys)
    assert out.read_text() == "another run's"
    assert names(tmp_path) == ["out.npy", "texts.txt"]


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "2>&1 | true"])
def test_a_run_whose_progress_nobody_reads_goes_on(
    server, texts_file, tmp_path, bertron_to, redirection
):
    out = tmp_path / "out.npy"
    options = (texts_file, "--url", server.http_url, "--output", out, "--batch", 7)
    done = bertron_to(redirection, "encode", *options)
    assert (done.returncode, done.stderr) == (0, "")
    np.testing.assert_array_equal(np.load(out), expected(TEXTS))


@pytest.fixture
def interrupted(server, texts_file, tmp_path, capsys):
    """Options of a run that stopped after 16 rows."""
    options = [texts_file, "--url", server.http_url, "--output", tmp_path / "o.npy", "--batch", 8]
    server.behaviour.fault = "internal"
    server.behaviour.only_texts_with = "text 20 "
    assert run(*options) == 1
    server.behaviour.fault = None
    capsys.readouterr()
    return options


def test_a_changed_input_is_refused(interrupted, texts_file, capsys):
    texts_file.write_text("something else\n" * 50, encoding="utf-8")
    assert run(*interrupted) == 1
    assert "the interrupted run had input_sha256" in (line := failure(capsys))
    assert "to start again remove" in line


def test_changed_options_are_refused(interrupted, capsys):
    assert run(*interrupted, "--truncate", "left") == 1
    assert "the interrupted run had truncate right, this one has left" in failure(capsys)


def test_another_model_is_refused(interrupted, server, capsys, monkeypatch):
    monkeypatch.setattr("fake_triton_model.vector_of", lambda *_: np.full(16, 0.25, np.float32))
    assert run(*interrupted) == 1
    assert "answers line 1 with another embedding" in failure(capsys)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"fine\n\xff\n", "a.txt line 2: not UTF-8, byte 0xff at position 0"),
        ("a.csv", b"id,said\n1,a\n", "a.csv: no column 'text', only id, said"),
        ("a.csv", b"", "a.csv: empty, a header line is wanted"),
        ("a.csv", b"text,id\na,1\nb\n", "a.csv line 3: 1 columns, the header has 2"),
        ("a.csv", b'text\n"never closed\n', "a.csv line 2: unexpected end of data"),
        ("a.jsonl", b'{"text": "a"}\n{"text": 1}\n', "a.jsonl line 2: no string in a field 'text'"),
        ("a.jsonl", b'{"text": "a"}\n{"te', "a.jsonl line 2: not JSON"),
        ("a.jsonl", b'["text"]\n', "a.jsonl line 1: no string in a field 'text'"),
        ("a.pdf", b"", "a.pdf: the extension must be one of .txt, .csv, .tsv, .jsonl"),
    ],
)
def test_a_bad_input_is_named_before_anything_is_written(tmp_path, capsys, name, content, words):
    (tmp_path / name).write_bytes(content)
    assert run(tmp_path / name, "--output", tmp_path / "out.npy") == 1
    assert words in failure(capsys)
    assert names(tmp_path) == [name]


def test_a_field_may_be_longer_than_pythons_csv_reads_by_itself(server, tmp_path):
    path, out = tmp_path / "in.csv", tmp_path / "out.npy"
    path.write_text(f"text,page\nshort,{'x' * 131_073}\n")
    before = csv.field_size_limit(131_072)  # Python's own, whatever ran before
    try:
        assert run(path, "--url", server.http_url, "--output", out) == 0
    finally:
        csv.field_size_limit(before)
    np.testing.assert_array_equal(np.load(out), expected(["short"]))


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no space is reserved here")
def test_a_full_disk_is_said_before_anything_is_encoded(
    server, texts_file, tmp_path, capsys, monkeypatch
):
    def refuse(_descriptor, _offset, _size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(encode.os, "posix_fallocate", refuse)
    out = tmp_path / "out.npy"
    assert run(texts_file, "--url", server.http_url, "--output", out) == 1
    size = 128 + len(TEXTS) * EMBEDDING_SIZE * 4  # the header of npy, and float32
    assert f"{out}.partial: no room for {size} bytes: No space left on device" in failure(capsys)
    assert server.behaviour.requests == []
    assert names(tmp_path) == ["texts.txt"]


def test_a_text_of_too_many_characters_is_named_before_any_is_encoded(server, tmp_path, capsys):
    path = tmp_path / "in.csv"
    longest = "x" * MAX_CHARACTERS
    path.write_text(f'text\n"two\nlines"\n{longest}\n{longest}y\nfine\n{longest}yz\n')
    options = ("--url", server.http_url, "--output", tmp_path / "out.npy", "--batch", 1)
    assert run(path, *options) == 1
    assert failure(capsys) == (
        f"bertron encode: {path} line 5: the text has {MAX_CHARACTERS + 1} characters, the server "
        f"takes at most {MAX_CHARACTERS}; texts that are too long: 2"
    )
    assert server.behaviour.requests == []
    assert names(tmp_path) == ["in.csv"]


def test_a_refused_text_is_named_by_its_line(server, tmp_path, capsys):
    path = tmp_path / "in.csv"
    path.write_text('text\n"two\nlines"\nfine\n' + "long " * 30 + "\n")
    options = ("--url", server.http_url, "--output", tmp_path / "out.npy", "--truncate", "error")
    assert run(path, *options) == 1
    assert "in.csv line 5: text 2 has 32 tokens, the model takes at most 12" in failure(capsys)


def test_the_rest_that_can_be_wrong(texts_file, tmp_path, capsys):
    for arguments, words in (
        ((texts_file, "--output", tmp_path / "out.xyz"), "one of the extensions .npy, .jsonl"),
        ((texts_file, "--output", texts_file, "--format", "npy"), "texts.txt exists; remove it"),
        ((texts_file, "--output", tmp_path / "no" / "out.npy"), "no is not a directory"),
        ((tmp_path / "no.txt", "--output", tmp_path / "o.npy"), "no.txt: No such file"),
        ((texts_file, "--output", tmp_path / "o.npy", "--batch", "0"), "--batch is 0"),
        ((texts_file, "--output", tmp_path / "o.npy", "--url", "x"), "grpcs://HOST:PORT is wanted"),
        (
            (texts_file, "--output", tmp_path / "o.npy", "--url", closed_port_url("http")),
            "refused",
        ),
    ):
        assert run(*arguments) == 1
        assert words in failure(capsys)
    assert names(tmp_path) == ["texts.txt"]
