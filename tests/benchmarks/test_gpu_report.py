"""Tables, targets and files from made-up rows: no figure here was measured."""

import csv

import gpu_report
import measuring
import pytest
from gpu_report import COMPILED, GRAPH, Report, Row, Target
from gpu_timing import Ceilings
from gpu_work import Work

CEILINGS = Ceilings(1000.0, {"float16": 100.0}, 2**20)


def kernel(shape="8 x 8", engine="Bertron", op="add_layer_norm", ms=(1.0,), **fields) -> Row:
    work = Work(operations=2e9, bytes=5e8)
    row = Row("kernels", op, shape, "float16", engine, work=work, times_ms=list(ms))
    for name, value in fields.items():
        setattr(row, name, value)
    return row


def model(name, shape, engine, ms, latency=None) -> Row:
    row = Row("models", name, shape, "float16", engine, times_ms=list(ms))
    row.latencies_ms = [latency] if latency else []
    return row


def test_a_row_without_a_right_result_has_no_time():
    row = kernel(ms=(1.0, 2.0, 3.0))
    assert (row.ms, row.gb_s, row.tflop_s) == (2.0, 250.0, 1.0)
    row.problem = "error 1e-1, gate 5e-4"
    assert (row.ms, row.latency_ms, row.gb_s, row.tflop_s) == (None, None, None, None)
    assert not row.failed
    row.is_ours = True
    assert row.failed
    assert "FAILED: error 1e-1" in gpu_report.kernel_table([row], CEILINGS)


def test_shares_are_of_the_measured_ceilings():
    row = kernel(ms=(1.0,))  # 500 GB/s, 2 TFLOP/s
    assert gpu_report.percent_of_copy(row, CEILINGS) == 50
    assert gpu_report.percent_of_product(row, CEILINGS) == 2
    row.dtype = "float32"  # whose product was not measured
    assert gpu_report.percent_of_product(row, CEILINGS) is None


@pytest.mark.parametrize(
    ("found", "least", "verdict"),
    [
        (None, True, "not measured"),
        (2.0, True, "reached"),
        (1.9, True, "not reached"),
        (2.0, False, "reached"),
        (2.1, False, "not reached"),
    ],
)
def test_verdicts(found, least, verdict):
    assert Target("", 2.0, "x", found, least).verdict == verdict


def test_targets_without_rows_are_not_measured():
    assert {t.verdict for t in gpu_report.targets([], CEILINGS)} == {"not measured"}


def test_targets_find_their_rows():
    rows = [
        model("BERT-base", "32 x 128", GRAPH, [1.0]),
        model("BERT-base", "32 x 128", COMPILED, [1.2]),
        model("BERT-base", "32 real texts, 800 tokens, fill 0.47", GRAPH, [1.0]),
        model("BERT-base", "32 real texts, 800 tokens, fill 0.47", COMPILED, [3.0]),
        model("BERT-base", "1 x 128", GRAPH, [0.1], latency=0.4),
        model("MiniLM-L6", "1 x 128", GRAPH, [0.1], latency=0.1),
        kernel("32 x 512, 12 heads of 64", op="varlen_attention", ms=(0.001,)),
        kernel("128 x 128, 12 heads of 64", op="varlen_attention", ms=(1.0,)),
        kernel("16384 x 768", ms=(0.5,)),
    ]
    found = {t.what: (t.found, t.verdict) for t in gpu_report.targets(rows, CEILINGS)}
    assert found == {
        "BERT-base, 32 x 128": (1.0, "reached"),
        "BERT-base, 32 x 128, against torch.compile": (pytest.approx(1.2), "not reached"),
        "BERT-base, 32 real texts, against torch.compile": (pytest.approx(3.0), "reached"),
        "BERT-base, 1 x 128": (0.4, "not reached"),  # a call alone, not one in a row
        "MiniLM-L6, 1 x 128": (0.1, "reached"),
        "attention, head_dim 64, S = 512": (pytest.approx(2000), "reached"),
        "attention, head_dim 64, S = 128": (pytest.approx(2), "not reached"),
        "or of the copy's rate": (pytest.approx(50), "not reached"),
        "add_layer_norm, of the copy's rate": (pytest.approx(100), "reached"),
    }


def test_a_wrong_row_reaches_nothing():
    wrong = model("BERT-base", "32 x 128", GRAPH, [0.1])
    wrong.problem = "cosine 0.1"
    assert gpu_report.targets([wrong], CEILINGS)[0].verdict == "not measured"


def test_ratios_are_of_the_same_round():
    slow, fast = model("", "", "a", [2.0, 8.0, 3.0]), model("", "", "b", [1.0, 2.0, 3.0])
    assert gpu_report.ratio(fast, slow) == 2.0


def test_each_engine_is_compared_with_our_graph_of_the_same_batch():
    rows = [model("m", "a", GRAPH, [1.0]), model("m", "a", COMPILED, [3.0])]
    rows.append(model("m", "b", COMPILED, [5.0]))
    lines = gpu_report.model_table(rows, CEILINGS).splitlines()[2:]
    assert [line.split(" | ")[5] for line in lines] == ["1.00", "3.00", ""]


@pytest.fixture
def report(tmp_path, monkeypatch) -> Report:
    monkeypatch.setattr(gpu_report, "setting", lambda _ceilings, commit: f"no GPU, commit {commit}")
    return Report(tmp_path / "results", CEILINGS, "abc")


def test_files_hold_rows_targets_and_notes(report, tmp_path, capsys):
    report.add(kernel(error=1e-4, is_ours=True))
    report.add(kernel(engine="torch", problem="error 1e-1, gate 5e-4"))
    report.notes.append("tune: 3 s did not suffice for all rows.")
    report.frozen.append("(2, 32): Tile(32, 32, 4, 1),  # 1.2 x")
    text = report.write()
    assert (tmp_path / "results" / "gpu.md").read_text() == text
    assert "| add_layer_norm, 8 x 8 | float16 | Bertron | 1000 (1000 to 1000) | 500 | 50 |" in text
    assert "```python\n(2, 32): Tile(32, 32, 4, 1),  # 1.2 x\n```" in text
    assert text.endswith("tune: 3 s did not suffice for all rows.\n\nno GPU, commit abc\n")
    with (tmp_path / "results" / "gpu.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["ms"] for line in lines] == ["1", ""]
    assert lines[1]["problem"] == "error 1e-1, gate 5e-4"
    assert not report.failed
    assert "Bertron: 1 (1 to 1) ms" in capsys.readouterr().err


def test_failures_are_named_at_the_end(report):
    report.add(kernel(is_ours=True, problem="error nan, gate 5e-04"))
    assert len(report.failed) == 1
    assert "- FAILED: add_layer_norm, 8 x 8, float16, Bertron: error nan" in report.write()


def test_the_roofline_is_drawn_where_a_kernel_was_timed(tmp_path):
    pytest.importorskip("matplotlib")
    assert "no kernel was timed" in gpu_report.draw_roofline([], CEILINGS, tmp_path)
    rows = [kernel(is_ours=True), kernel("2 x 2", is_ours=True, dtype="bfloat16")]
    assert gpu_report.draw_roofline(rows, CEILINGS, tmp_path) == "![](gpu_roofline.svg)"
    assert {path.name for path in tmp_path.iterdir()} == {"gpu_roofline.svg", "gpu_roofline.png"}


def test_the_commit_is_named_even_without_git(monkeypatch, tmp_path):
    monkeypatch.setattr(measuring, "ROOT", tmp_path)
    assert measuring.commit() == "no commit"
