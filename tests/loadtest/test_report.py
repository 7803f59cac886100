import csv
import dataclasses
import json
import re

import pytest
from bertron_loadtest.figures import FIGURES, figures_by_phase
from bertron_loadtest.report import text_summary, write_report
from bertron_loadtest.samples import Samples
from bertron_loadtest.thresholds import Verdict, judge, read_thresholds
from checked_html import CheckedHtml
from made_up_runs import call, make_run, phase, ramp_run, spike_run, steady_run

GOOD = Verdict("all", "wrong", "at most 0", 0, passed=True)
BAD = Verdict("steady", "p99_ms", "at most 200", 231.4567, passed=False)
SKIPPED = Verdict(
    *("soak", "p99_ms", "at most 1", None),
    passed=True,
    judged=False,
    reason="this run's shape is steady",
)


def read_report(folder):
    return CheckedHtml((folder / "report.html").read_text("utf-8"))


def headings(page):
    names = ["Failed", "Phases", "Throughput and latency over time", "Latency distribution"]
    names += ["Where the time went", "Batches of bert", "CPU and memory", "Saturation"]
    names += ["Calls that were not right", "Every threshold", "Beside the baseline"]
    names += ["Every figure", "What was asked for", "Where and with what"]
    return [text for text in page.texts if text in names]


def test_the_files_of_a_steady_run(tmp_path):
    run = steady_run(seconds=6)
    write_report(run, tmp_path / "new" / "folder", [GOOD])
    folder = tmp_path / "new" / "folder"
    assert {path.name for path in folder.iterdir()} == {
        "report.html",
        "figures.json",
        "figures.csv",
    }
    page = read_report(folder)
    assert headings(page) == [
        "Phases",
        "Throughput and latency over time",
        "Latency distribution",
        "Where the time went",
        "Batches of bert",
        "CPU and memory",
        "Every threshold",
        "Every figure",
        "What was asked for",
        "Where and with what",
    ]
    assert "PASSED" in page.texts
    assert [tag for tag, _ in page.tags].count("svg") == 5
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe")]
    steady = figures_by_phase(run)["steady"]
    assert f"{steady['p50_ms']:.1f}" in page.texts
    assert f"{steady['texts_per_s']:.1f}" in page.texts
    assert {"made up, 2 cores", "2027-01-02T03:04:05+00:00", "text_embedding"} <= set(page.texts)


def test_a_ramp_has_its_saturation_curve(tmp_path):
    write_report(ramp_run(most_users=8, step_s=2), tmp_path, [GOOD])
    assert "Saturation" in headings(read_report(tmp_path))
    svg = (tmp_path / "saturation.svg").read_text("utf-8")
    assert svg.startswith("<?xml")
    assert re.search(r">texts/s<", svg)


def test_the_figures_as_json(tmp_path):
    run = spike_run(third_s=3)
    write_report(run, tmp_path, [GOOD, BAD, SKIPPED])
    document = json.loads((tmp_path / "figures.json").read_text("utf-8"))
    assert document["passed"] is False
    assert document["figures"] == figures_by_phase(run)
    assert document["verdicts"][1] == dataclasses.asdict(BAD)
    assert [row["name"] for row in document["phases"]] == ["before", "spike", "after"]
    assert document["batch_tokens"]["all"].keys() == {"64", "128", "256", "+Inf"}
    assert document["batch_texts"]["all"].keys() == {"4", "12"}
    (error,) = document["errors"]
    assert error["outcome"] == "refused"
    assert error["calls"] == document["figures"]["all"]["refused"] > 0
    assert document["settings"]["shape"] == "spike"
    assert document["setting"]["machine"] == "made up, 2 cores"


def test_the_figures_as_csv(tmp_path):
    run = make_run([call(1, 0.5)], [phase("steady", 0, 10)])
    write_report(run, tmp_path, [GOOD])
    with (tmp_path / "figures.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["figure"] for row in rows] == [*FIGURES, *FIGURES]
    values = {(row["phase"], row["figure"]): row["value"] for row in rows}
    assert float(values["steady", "p50_ms"]) == pytest.approx(500)
    assert values["all", "calls"] == "1"
    assert values["steady", "bert_ms"] == ""


def test_equal_runs_give_equal_reports(tmp_path):
    for name in ("a", "b"):
        write_report(ramp_run(most_users=2, step_s=2), tmp_path / name, [GOOD])
    for name in ("report.html", "figures.json", "figures.csv", "saturation.svg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_errors_may_hold_anything(tmp_path):
    evil = "</td><script>alert(1)</script>\x1b[31m\x00\ud800"
    calls = [call(1, 0.1), call(2, 0.1, outcome="failed", error=evil)]
    run = make_run(calls, [phase("steady", 0, 5)])
    write_report(run, tmp_path, [BAD])
    page = read_report(tmp_path)
    assert "script" not in [tag for tag, _ in page.tags]
    told = "</td><script>alert(1)</script>\\x1b[31m\\x00\\ud800"
    assert told in page.texts
    assert told in text_summary(run, [BAD])
    document = json.loads((tmp_path / "figures.json").read_text("utf-8"))
    assert document["errors"] == [{"outcome": "failed", "error": evil, "calls": 1}]


def test_the_summary_tells_what_matters():
    calls = [call(index / 100, 0.05, texts=2) for index in range(1000)]
    calls += [call(5, 0.1, outcome="refused", error="OverloadedError: busy")] * 7
    calls += [call(5, 0.1, outcome="wrong", error="WrongAnswerError: another vector")] * 3
    steady = steady_run(seconds=10, warm_up_s=0)
    run = make_run(
        calls,
        [phase("steady", 0, 10, users=5)],
        steady.snapshots,
        sent=1012,
        shape="steady",
        users=5,
    )
    text = text_summary(run, [GOOD, BAD, SKIPPED])
    lines = text.splitlines()
    assert lines[0] == "Load test: short, steady, 5 users"
    assert re.search(r"^steady +5 +200 +3,99\d +50\.0 +50\.0 +50\.0 +50\.0 +7 +3$", text, re.M)
    assert re.search(r"^all +200 +3,99\d +50\.0 +50\.0 +50\.0 +50\.0 +7 +5$", text, re.M)  # 2 lost
    assert re.search(r"^phase +mean +network +tokenizer waits +tokenizer +between", text, re.M)
    assert re.search(r"^steady +50\.0 +\S+ +1\.00 +0\.5 +0\.25 ", text, re.M)
    assert re.search(r"^steady +8\.\d\d +16\d +20\.0 %$", text, re.M)
    assert re.search(r"^bert +1\.25 +60\d +6\.00$", text, re.M)
    assert re.search(r"^7 +refused +OverloadedError: busy$", text, re.M)
    assert re.search(r"^3 +wrong +WrongAnswerError: another vector$", text, re.M)
    assert re.search(r"^2 +never ended$", text, re.M)
    assert "failed: steady p99_ms is 231.457, at most 200 is wanted" in lines
    assert "not judged: soak: this run's shape is steady" in lines
    assert lines[-1] == "FAILED"


def test_the_last_word():
    run = steady_run(seconds=3)
    assert text_summary(run, [GOOD, SKIPPED]).endswith("\nPASSED")
    assert text_summary(run, [GOOD, BAD]).endswith("\nFAILED")
    assert text_summary(run, []).endswith("\nFAILED")  # nobody judged


def test_a_failed_run_fails_first(tmp_path):
    write_report(steady_run(seconds=3), tmp_path, [GOOD, BAD])
    page = read_report(tmp_path)
    assert headings(page)[:2] == ["Failed", "Phases"]
    assert page.texts.index("FAILED") < page.texts.index("Failed") < page.texts.index("231.457")
    assert page.texts.index("231.457") < page.texts.index("Phases")


def test_an_open_loop_shows_arrivals():
    calls = [call(index / 50, 0.01) for index in range(500)]
    run = make_run(calls, [phase("steady", 0, 10, users=40)], loop="open", rate=50.0)
    text = text_summary(run, [GOOD])
    assert text.startswith("Load test: short, ?, 50.0 calls/s")
    assert re.search(r"^phase +calls/s due ", text, re.M)
    assert re.search(r"^steady +50\.0 ", text, re.M)


def test_many_kinds_of_errors_are_cut_short():
    calls = [call(1, 0.1, outcome="failed", error=f"E{index:02}") for index in range(25)]
    text = text_summary(make_run(calls, [phase("steady", 0, 5)]), [BAD])
    assert text.count("failed   E") == 20
    assert re.search(r"^5 +of 5 more kinds$", text, re.M)


def test_beside_a_baseline(tmp_path):
    baseline = steady_run(seconds=8, users=2)
    run = steady_run(seconds=8, users=4)
    write_report(run, tmp_path, [GOOD], baseline)
    page = read_report(tmp_path)
    assert "Beside the baseline" in headings(page)
    assert "THE BASELINE WAS ASKED FOR SOMETHING ELSE, see the first table." in page.texts
    assert "run / baseline" in page.texts
    write_report(run, tmp_path, [GOOD], run)
    assert "see the first table" not in (tmp_path / "report.html").read_text("utf-8")


def test_a_run_that_could_not_be_made(tmp_path):
    run = make_run([], [], sent=2, problem="WrongAnswerError: the known vectors differ")
    path = tmp_path / "thresholds.toml"
    path.write_text("[all]\nwrong = { max = 0 }", encoding="utf-8")
    verdicts = judge(run, read_thresholds(path))
    write_report(run, tmp_path, verdicts)
    text = text_summary(run, verdicts)
    assert "failed: all problem, none: WrongAnswerError: the known vectors differ" in text
    assert "failed: all wrong, at most 0: no call ended in it" in text
    assert text.endswith("FAILED")
    page = read_report(tmp_path)
    assert "FAILED" in page.texts
    assert any("could not be made: WrongAnswerError" in note for note in page.texts)


def test_a_server_that_was_not_seen(tmp_path):
    run = dataclasses.replace(steady_run(seconds=3), snapshots=())
    write_report(run, tmp_path, [GOOD])
    assert "Where the time went" not in headings(read_report(tmp_path))
    text = text_summary(run, [GOOD])
    assert "where the time went" not in text
    assert "processes" not in text


def test_no_call_at_all(tmp_path):
    run = dataclasses.replace(steady_run(seconds=3), samples=Samples([]))
    write_report(run, tmp_path, [GOOD])
    assert re.search(r"^steady +4 +0 +0 +- +- +- +- +0 +\d+$", text_summary(run, [GOOD]), re.M)
