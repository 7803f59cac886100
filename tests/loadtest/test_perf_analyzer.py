"""NVIDIA's program: what it is asked and says, where it is found; and, if it is here, itself."""

import json
import sys
import zipfile
from pathlib import Path

import pytest
from bertron_loadtest import perf_analyzer
from bertron_loadtest.perf_analyzer import (
    FOLDER,
    NAME,
    PerfAnalyzerResult,
    command,
    fetch_perf_analyzer,
    find_perf_analyzer,
    input_data,
    read_result,
    run_perf_analyzer,
)
from bertron_server.server import TritonServer
from real_server import MODEL_REPOSITORY

# Written by perf_analyzer 2.51 for our ensemble, on a busy machine.
REPORT = (
    "Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,"
    "Server Compute Input,Server Compute Infer,Server Compute Output,Client Recv,"
    "p50 latency,p90 latency,p95 latency,p99 latency\n"
    "8,70.8895,5,45583,1,109,63074,3136,100,99340,169403,200508,367116\n"
)
SAID = """\
Request concurrency: 8
  Client: 
    Request count: 515
    Throughput: 70.8895 infer/sec
    Avg client overhead: 0.16%
    p50 latency: 99340 usec
    p90 latency: 169403 usec
    p95 latency: 200508 usec
    p99 latency: 367116 usec
    Avg gRPC time: 111990 usec (marshal 5 usec + response wait 111885 usec + unmarshal 100 usec)
  Server: 
    Inference count: 515
    Execution count: 515
    Successful request count: 515
    Avg request latency: 105587 usec (overhead 288 usec + queue 39002 usec + compute 66297 usec)

  Composing models: 
  bert, version: 1
      Inference count: 515
      Execution count: 122
      Successful request count: 515
      Avg request latency: 97432 usec (overhead 7 usec + queue 33257 usec + compute input 83 usec \
+ compute infer 61068 usec + compute output 3015 usec)
"""  # noqa: W291 - as it was written
HTTP_MEAN = "    Avg HTTP time: 324479 usec (send/recv 165 usec + response wait 324314 usec)\n"


def test_the_report_of_an_ensemble_is_read():
    assert read_result(REPORT, SAID) == PerfAnalyzerResult(
        concurrency=8,
        requests_per_s=70.8895,
        mean_ms=111.990,
        p50_ms=99.340,
        p90_ms=169.403,
        p95_ms=200.508,
        p99_ms=367.116,
        server_ms=105.587,
        server_queue_ms=39.002,  # the report's own column says 1 us
        server_compute_ms=66.297,
    )


def test_http_is_read_too():
    lines = [HTTP_MEAN if "gRPC time" in line else line for line in SAID.splitlines(keepends=True)]
    assert read_result(REPORT, "".join(lines)).mean_ms == 324.479


@pytest.mark.parametrize(
    ("report", "said", "why"),
    [
        ("", SAID, "no column"),
        (REPORT.splitlines()[0], SAID, "no column"),
        (REPORT.replace("p99 latency", "p98 latency"), SAID, "no column 'p99 latency'"),
        (REPORT.replace("70.8895", "many"), SAID, "could not convert"),
        (REPORT, "Request concurrency: 8\n", "does not say how long the server took"),
    ],
)
def test_what_is_no_report_is_refused(report, said, why):
    with pytest.raises(ValueError, match=why):
        read_result(report, said)


def test_the_command_line(tmp_path):
    line = command(
        *(tmp_path / NAME, "grpc://127.0.0.1:8001", "text_embedding"),
        *(tmp_path / "texts.json", tmp_path / "report.csv"),
        concurrency=8,
        seconds=6,
    )
    options = dict(zip(line[1:-3:2], line[2:-2:2], strict=True))
    assert options == {
        "-m": "text_embedding",
        "-i": "grpc",
        "-u": "127.0.0.1:8001",
        "-b": "1",
        "--input-data": str(tmp_path / "texts.json"),
        "--concurrency-range": "8",
        "--measurement-interval": "2000",  # ms, of three windows
        "--stability-percentage": "999",
        "--max-trials": "3",
    }
    assert line[-3:] == ["--percentile=99", "-f", str(tmp_path / "report.csv")]


def test_texts_are_handed_over_one_a_request():
    texts = ["grüße, 漢字 and 😀", "", 'quotes " and \\']
    assert json.loads(input_data(texts)) == {"data": [{"TEXT": [text]} for text in texts]}


def make_program(path: Path, body: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable}\nimport os, pathlib, sys, time\n{body}\n")
    path.chmod(0o755)
    return path


def test_the_program_is_found_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(perf_analyzer, "FOLDER", tmp_path / "build")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(ValueError, match="--fetch"):
        find_perf_analyzer(None)
    built = make_program(tmp_path / "build" / NAME)
    assert find_perf_analyzer(None) == built
    on_path = make_program(tmp_path / "bin" / NAME)
    assert find_perf_analyzer(None) == on_path
    given = make_program(tmp_path / "given")
    assert find_perf_analyzer(given) == given
    given.chmod(0o644)
    for no_program in (given, tmp_path, tmp_path / "absent"):
        with pytest.raises(ValueError, match="no program"):
            find_perf_analyzer(no_program)


def test_fetching_takes_the_program_out_of_the_wheel(tmp_path, monkeypatch):
    def download(requirement: str, folder: Path, *, timeout_s: float) -> Path:
        assert requirement == "tritonclient==2.51.0"
        wheel = folder / "tritonclient-2.51.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("tritonclient/http.py", "")
            archive.writestr(f"tritonclient-2.51.0.data/data/bin/{NAME}", "#!/bin/sh\n")
        return wheel

    monkeypatch.setattr(perf_analyzer, "FOLDER", tmp_path / "build")
    monkeypatch.setattr(perf_analyzer, "download_wheel", download)
    monkeypatch.setenv("PATH", "")
    for _ in range(2):  # the second time over the first
        assert fetch_perf_analyzer() == tmp_path / "build" / NAME
    assert sorted(path.name for path in (tmp_path / "build").iterdir()) == ["lib", NAME]
    assert find_perf_analyzer(None, fetch=True).read_text() == "#!/bin/sh\n"
    for name in ("libb64.so.0d", "libcudart.so.12"):
        assert (tmp_path / "build" / "lib" / name).stat().st_size > 1000


def run(program: Path, url: str = "grpc://127.0.0.1:1", **settings) -> PerfAnalyzerResult:
    arguments = {"concurrency": 2, "seconds": 0.6, **settings}
    return run_perf_analyzer(program, url, "text_embedding", ["a", "b c"], **arguments)


def test_a_run_reads_the_report_and_sees_the_libraries_beside_the_program(tmp_path):
    body = f"""
options = dict(zip(sys.argv, sys.argv[1:]))
assert "b c" in pathlib.Path(options["--input-data"]).read_text()
assert os.environ["LD_LIBRARY_PATH"].split(":")[0] == {str(tmp_path / "lib")!r}
pathlib.Path(options["-f"]).write_text({REPORT!r})
print({SAID!r})"""
    (tmp_path / "lib").mkdir()
    assert run(make_program(tmp_path / NAME, body)).p50_ms == 99.340


def test_a_failed_run_says_why(tmp_path, monkeypatch):
    program = make_program(tmp_path / NAME, "sys.exit('error: failed to get model metadata')")
    with pytest.raises(OSError, match=r"ended with 1: error: failed to get model metadata"):
        run(program)
    with pytest.raises(OSError, match="report cannot be read"):
        run(make_program(tmp_path / NAME))
    monkeypatch.setattr(perf_analyzer, "_OVERTIME_S", 0.5)
    with pytest.raises(TimeoutError, match="had not ended after 1 s"):
        run(make_program(tmp_path / NAME, "time.sleep(30)"))


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.skipif(
    not (FOLDER / NAME).is_file(),
    reason="perf_analyzer is not here; `python -m bertron_loadtest cross-check --fetch` gets it",
)
def test_the_real_program_measures_the_real_server():
    with TritonServer(MODEL_REPOSITORY) as server:
        for url in (server.grpc_url, server.http_url):
            found = run(FOLDER / NAME, url, concurrency=4, seconds=3)
            assert found.concurrency == 4
            # Little's law: calls at a time = their rate times their time.
            assert 3 < found.requests_per_s * found.mean_ms / 1e3 < 5
            assert found.p50_ms <= found.p90_ms <= found.p95_ms <= found.p99_ms
            # The steps' counters are read a moment apart from the ensemble's.
            parts_ms = found.server_queue_ms + found.server_compute_ms
            assert parts_ms == pytest.approx(found.server_ms, rel=0.2)
            assert found.server_ms < found.mean_ms
        with pytest.raises(OSError, match="unknown model: 'absent'"):
            run_perf_analyzer(
                FOLDER / NAME, server.http_url, "absent", ["a"], concurrency=1, seconds=1
            )
