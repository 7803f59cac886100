import argparse
import dataclasses
import json
import re

import pytest
from bertron_loadtest import compare
from bertron_loadtest.compare import NUM_WINDOWS, compare_runs, differing, is_better
from bertron_loadtest.samples import Samples
from checked_html import CheckedHtml
from made_up_runs import call, make_run, phase, ramp_run, steady_run


def command(*arguments):
    parser = argparse.ArgumentParser()
    compare.add_arguments(parser)
    return compare.main(parser.parse_args([str(argument) for argument in arguments]))


@pytest.fixture
def saved(tmp_path):
    def save(name, run):
        run.save(tmp_path / name)
        return tmp_path / name

    return save


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([3, 4], [1, 2], 1),
        ([1, 2], [3, 4], -1),
        ([1, 3], [2, 4], 0),
        ([1, 10], [2, 3], 0),
        ([2], [2], 0),
        ([1, 2], [2, 3], 0),  # they touch
        ([2], [1], 1),
    ],
)
def test_sets_are_apart_or_equal_within_the_noise(a, b, expected):
    assert is_better(a, b) == expected
    assert is_better(b, a) == -expected
    assert is_better(a, b, lower_is_better=True) == -expected


@pytest.mark.parametrize("values", [[], [1, float("nan")], [float("inf")]])
def test_what_cannot_be_compared_is_refused(values):
    with pytest.raises(ValueError, match="finite numbers are wanted"):
        is_better(values, [1])
    with pytest.raises(ValueError, match="finite numbers are wanted"):
        is_better([1], values)


def verdicts(a, b, phase_name="steady"):
    return {row.figure: row.verdict for row in compare_runs(a, b, phase_name)}


def test_a_figure_is_taken_in_each_window():
    # 1, 2, ... 8 texts in the seconds of the phase.
    calls = [call(10 + second, 0.5, texts=second + 1) for second in range(8)]
    run = make_run(calls, [phase("warm-up", 0, 10), phase("steady", 10, 18)])
    rows = {row.figure: row for row in compare_runs(run, run, "all")}
    assert rows["texts_per_s"].a == pytest.approx([1, 2, 3, 4, 5, 6, 7, 8])
    assert rows["texts_per_s"].ratio == pytest.approx(1)
    assert rows["p50_ms"].a == pytest.approx([500] * NUM_WINDOWS)
    assert "bert_ms" not in rows  # known of neither
    assert "calls" not in rows
    assert set(verdicts(run, run).values()) == {"equal within the noise"}


def test_a_step_of_a_ramp_is_compared_without_its_first_second():
    calls = [call(0, 0.9, texts=9000), *(call(1 + second, 0.5, texts=4) for second in range(8))]
    run = make_run(calls, [phase("4 users", 0, 9)])
    (row,) = [row for row in compare_runs(run, run, "4 users") if row.figure == "texts_per_s"]
    assert row.a == pytest.approx([4] * 8)


def test_slower_is_worse_and_noise_is_equal():
    fast, slow = steady_run(seconds=16), steady_run(seconds=16, latency_ms=75, seed=1)
    found = verdicts(fast, slow)
    for figure in ("texts_per_s", "tokens_per_s", "p50_ms", "p95_ms", "mean_ms", "bert_ms"):
        assert found[figure] == "worse", figure
    for figure in ("tokenizer_ms", "batch_texts", "cpu_cores.bert", "refused_share"):
        assert found[figure] == "equal within the noise", figure
    assert verdicts(slow, fast)["p50_ms"] == "better"
    again = verdicts(fast, steady_run(seconds=16, seed=2))
    assert again["texts_per_s"] == again["p50_ms"] == "equal within the noise"


def test_larger_batches_are_neither_better_nor_worse():
    run = steady_run(seconds=8)

    def twice(snapshot):
        bert = snapshot.steps["bert"]
        steps = {**snapshot.steps, "bert": dataclasses.replace(bert, texts=2 * bert.texts)}
        return dataclasses.replace(snapshot, steps=steps)

    larger = dataclasses.replace(run, snapshots=[twice(snapshot) for snapshot in run.snapshots])
    assert verdicts(run, larger)["batch_texts"] == "higher"
    assert verdicts(larger, run)["batch_texts"] == "lower"


def test_what_one_run_does_not_know_has_no_verdict():
    run = steady_run(seconds=8)
    blind = dataclasses.replace(run, snapshots=())
    assert verdicts(run, blind)["bert_ms"] == "-"
    (row,) = [row for row in compare_runs(blind, run) if row.figure == "bert_ms"]
    assert row.ratio is None
    empty = dataclasses.replace(run, samples=Samples([]))
    assert verdicts(run, empty)["p50_ms"] == "-"


def test_a_ratio_is_of_numbers_above_0():
    assert compare.Comparison("x", [2, 4, 3], [6], "-").ratio == 2
    for a, b in (([0], [1]), ([1], [0]), ([-1], [1]), ([], [1]), ([1], [])):
        assert compare.Comparison("x", a, b, "-").ratio is None


def test_differing_settings():
    assert differing({"a": 1, "b": 2}, {"b": 3, "a": 1, "c": 4}) == {"b": (2, 3), "c": (None, 4)}
    assert differing({"a": [1]}, {"a": [1]}) == {}


def test_the_table_shouts_what_differs_and_shows_the_noise(saved, capsys):
    a = saved("a", steady_run(seconds=8))
    b = saved("b", steady_run(seconds=8, users=8, latency_ms=100))
    assert command(a, b, "--phase", "steady") == 0
    text = capsys.readouterr().out
    assert text.index("THE RUNS WERE ASKED FOR DIFFERENT THINGS") < text.index("Figures of steady")
    assert re.search(r"^users +4 +8$", text, re.M)
    assert re.search(
        r"^p50_ms +\S+ +\S+ to \S+ +\S+ +\S+ to \S+ +(1\.9\d|2\.0\d) +worse$", text, re.M
    )
    assert re.search(r"^texts_per_s .* equal within the noise$", text, re.M)
    assert re.search(r"^wrong +0 +0$", text, re.M)
    assert "Runs whose ranges overlap are equal within the noise." in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 120


def test_equal_settings_are_said_to_be(saved, capsys):
    a, b = saved("a", steady_run(seconds=4)), saved("b", steady_run(seconds=4, seed=1))
    command(a, b)
    text = capsys.readouterr().out
    assert "DIFFERENT" not in text
    assert "Every setting of the two runs is the same." in text


def test_a_single_wrong_answer_is_no_noise(saved, capsys):
    run = steady_run(seconds=4)
    first, *others = run.samples
    wrong = dataclasses.replace(run, samples=Samples([first._replace(outcome="wrong"), *others]))
    command(saved("a", run), saved("b", wrong))
    assert re.search(r"^wrong +0 +1$", capsys.readouterr().out, re.M)


def test_json(saved, capsys):
    a = saved("a", steady_run(seconds=4))
    b = saved("b", steady_run(seconds=4, latency_ms=100))
    assert command(a, b, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["A"] == str(a)
    assert document["phase"] == "all"
    rows = {row["figure"]: row for row in document["figures"]}
    assert rows["p50_ms"]["verdict"] == "worse"
    assert rows["p50_ms"]["ratio"] == pytest.approx(2, rel=0.1)
    assert len(rows["p50_ms"]["a"]) == NUM_WINDOWS
    assert document["counts"]["wrong"] == [0, 0]
    assert document["differing_settings"] == {}


def test_a_page_with_both_in_one_picture(saved, tmp_path):
    a = saved("a", ramp_run(most_users=2, step_s=2))
    b = saved("b", ramp_run(most_users=4, step_s=2))
    path = tmp_path / "new" / "both.html"
    assert command(a, b, "--phase", "2 users", "--output", path) == 0
    page = CheckedHtml(path.read_text("utf-8"))
    assert [tag for tag, _ in page.tags].count("svg") == 1
    assert page.texts.index("THE RUNS WERE ASKED FOR DIFFERENT THINGS") < page.texts.index(
        "Throughput and latencies"
    )
    assert {"A", "B", "texts/s", "latency, ms", "Figures of 2 users"} <= set(page.texts)


def test_runs_that_cannot_be_compared(saved, tmp_path):
    a = saved("a", steady_run(seconds=2))
    with pytest.raises(OSError, match="absent"):
        command(a, tmp_path / "absent")
    with pytest.raises(ValueError, match="no phase 'soak'; it has warm-up, steady, all"):
        command(a, a, "--phase", "soak")
