import argparse
from pathlib import Path

import pytest
from bertron_loadtest.knobs import SEARCH, read_value, with_value
from bertron_loadtest.tune import Trial, Tuning, choose, is_improved
from real_server import MODEL_REPOSITORY


def trial(*rates, p99_ms=100, faults=0):
    return Trial(list(rates), [p99_ms] * len(rates), {}, faults)


def test_the_present_value_stays_unless_another_is_better_beyond_the_noise():
    now = trial(100, 105, 102)
    assert choose((1,), {(1,): now, (2,): trial(104, 107, 106)}) == (1,)
    assert choose((1,), {(1,): now, (2,): trial(110, 112, 109)}) == (2,)
    assert choose((1,), {(1,): now, (2,): trial(110, 112, 109), (3,): trial(130, 125, 128)}) == (3,)


def test_speed_is_bought_neither_with_wrong_answers_nor_with_slow_ones():
    now = trial(100, 105, 102)
    assert choose((1,), {(1,): now, (2,): trial(150, 150, 150, faults=1)}) == (1,)
    assert choose((1,), {(1,): now, (2,): trial(150, 150, 150, p99_ms=130)}) == (1,)
    assert choose((1,), {(1,): now, (2,): trial(150, 150, 150, p99_ms=115)}) == (2,)


def test_what_is_no_better_in_the_end_is_taken_back(tuning):
    assert is_improved(trial(100, 105, 102), trial(110, 112, 109))
    assert not is_improved(trial(100, 105, 102), trial(104, 112, 109))
    before = dict(tuning.configs)
    for trials in SEARCH:
        for knob in trials.knobs:
            changed = with_value(tuning.configs[knob.step], knob, 7, "as measured")
            tuning.configs[knob.step] = changed
    tuning.take_back(before)
    for trials in SEARCH:
        for knob in trials.knobs:
            assert read_value(tuning.configs[knob.step], knob) == read_value(
                before[knob.step], knob
            )
    assert tuning.configs["bert"].count("  # as measured") == 5


@pytest.fixture
def tuning(tmp_path):
    repository = tmp_path / "models"
    for step in ("bert", "tokenizer"):
        (repository / step / "1").mkdir(parents=True)
        config = MODEL_REPOSITORY / step / "config.pbtxt"
        (repository / step / "config.pbtxt").write_text(config.read_text("utf-8"), "utf-8")
        (repository / step / "1" / "model.py").write_text("# a shim", "utf-8")
    args = argparse.Namespace(
        model_repository=repository, model="text_embedding", rounds=2, seconds=1.0, texts=None
    )
    return Tuning(args, tmp_path / "runs")


def test_what_was_measured_stands_beside_each_number(tuning, monkeypatch):
    """The search itself, with its measurements made up: the second of each set is the best."""

    def measure(candidates, _what):
        rates = [[100.0, 101.0], [120.0, 121.0], *[[90.0, 91.0]] * len(candidates)]
        trials = [trial(*rates[number]) for number in range(len(candidates))]
        for made in trials:
            made.loads = {(32, 1): made.rates, (4, 32): made.rates}
        return trials

    monkeypatch.setattr(tuning, "measure", measure)
    before = dict(tuning.configs)
    for trials in SEARCH:
        tuning.search(trials)
    tuning.runs_folder.mkdir(parents=True)
    tuning.write(*measure([before, tuning.configs], ""))
    bert = (tuning.repository / "bert" / "configs" / "tuned.pbtxt").read_text("utf-8")
    for trials in SEARCH:
        for knob in trials.knobs:
            config = bert if knob.step == "bert" else tuning.configs["tokenizer"]
            present = read_value(before[knob.step], knob)
            values = [tuple(read_value(before[k.step], k) for k in trials.knobs), *trials.values]
            chosen = next(value for value in values[1:] if value != values[0])
            assert read_value(config, knob) == chosen[trials.knobs.index(knob)], present
    (line,) = [line for line in bert.splitlines() if line.startswith("max_batch_size")]
    assert line.startswith("max_batch_size: 128  # texts joined in one batch")
    assert "64: 100 (100 to 101), 128: 120 (120 to 121), 256: 90 (90 to 91)" in line
    table = (tuning.runs_folder / "tuning.md").read_text("utf-8")
    assert "| before | 100 (100 to 101) |" in table
    assert "| after | 120 (120 to 121) |" in table
    untouched = Path(tuning.repository / "bert" / "config.pbtxt").read_text("utf-8")
    assert untouched == before["bert"]


def test_a_trial_serves_links_to_the_real_files_with_other_configurations(tuning, tmp_path):
    configs = tuning.configs | {"bert": "name: 'other'\n"}
    copy = tuning.copied(tmp_path / "copy", configs)
    assert (copy / "bert" / "config.pbtxt").read_text("utf-8") == "name: 'other'\n"
    assert not (copy / "bert" / "config.pbtxt").is_symlink()
    assert (copy / "bert" / "1" / "model.py").is_symlink()
    assert (tuning.repository / "bert" / "config.pbtxt").read_text("utf-8") != "name: 'other'\n"
