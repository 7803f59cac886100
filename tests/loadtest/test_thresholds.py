from pathlib import Path

import pytest
from bertron_loadtest import thresholds as thresholds_module
from bertron_loadtest.figures import FIGURES
from bertron_loadtest.thresholds import Limit, judge, read_thresholds
from made_up_runs import call, make_run, phase, ramp_run, spike_run, steady_run

LIMITS = Path(thresholds_module.__file__).with_name("limits")
SHIPPED = LIMITS / "any.toml"
STEADY = phase("steady", 0, 10)


@pytest.fixture
def thresholds(tmp_path):
    def read(text):
        path = tmp_path / "thresholds.toml"
        path.write_text(text, encoding="utf-8")
        return read_thresholds(path)

    return read


def run_of(*outcomes, **fields):
    calls = [call(1, 0.1, outcome=outcome) for outcome in outcomes]
    return make_run(calls, [STEADY], **fields)


def test_limits_are_read(thresholds):
    read = thresholds("""
        [all]
        wrong = { max = 0 }
        memory_mb.bert = { max = 900 }
        "cpu_cores.load_generator" = { max = 1.5 }
        [steady]
        p50_ms = { max = 50, max_times_baseline = 1.5 }
        ["64 users"]
        texts_per_s = { min = 100, min_times_baseline = 0.8 }
    """)
    assert read.limits == {
        "all": {
            "wrong": Limit(max=0),
            "memory_mb.bert": Limit(max=900),
            "cpu_cores.load_generator": Limit(max=1.5),
        },
        "steady": {"p50_ms": Limit(max=50, max_times_baseline=1.5)},
        "64 users": {"texts_per_s": Limit(min=100, min_times_baseline=0.8)},
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[stedy]\np50_ms = { max = 1 }", "'stedy' is no phase; phases are all, steady, soak"),
        ("[warm-up]\np50_ms = { max = 1 }", "'warm-up' is judged by nobody"),
        ("[steady]\np50 = { max = 1 }", "'p50' of 'steady' is no figure; figures are calls, "),
        ("[steady]\nmemory.bert = { max = 1 }", "'memory' of 'steady' is no figure"),
        ("[steady]\n'p50_ms.bert' = { max = 1 }", "'p50_ms.bert' of 'steady' is no figure"),
        ("[steady]\n'memory_mb.' = { max = 1 }", "'memory_mb.' of 'steady' is no figure"),
        ("[steady]\nmemory_mb = { max = 1 }", "'memory_mb.max' of 'steady' is 1; a limit"),
        ("[steady]\nnot_sent = { max = 1 }", "'not_sent' of 'steady' is only known of 'all'"),
        ("[steady]\np50_ms = { most = 1 }", "has 'most'; a limit has max, min, max_times_baseline"),
        ("[steady]\np50_ms = 50", "'p50_ms' of 'steady' is 50; a limit as"),
        ("[steady]\np50_ms = {}", "a limit as { max = 1 } is wanted"),
        ("[steady]\np50_ms = { max = '1' }", "max = '1'; a finite number"),
        ("[steady]\np50_ms = { max = true }", "max = True; a finite number"),
        ("[steady]\np50_ms = { max = inf }", "max = inf; a finite number"),
        ("[steady]\np50_ms = { max = nan }", "max = nan; a finite number"),
        ("steady = 1", "'steady' is no table"),
        ("[steady]", "there is no limit in it"),
        ("", "there is no limit in it"),
        ("[steady", "thresholds.toml: "),
    ],
)
def test_what_means_nothing_is_refused_by_name(thresholds, text, told):
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - told is in it
        thresholds(text)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_absent():
    with pytest.raises(OSError, match="absent"):
        read_thresholds(Path("absent.toml"))


def verdict_of(run, thresholds, text, baseline=None):
    (verdict,) = judge(run, thresholds(text), baseline)
    return verdict


@pytest.mark.parametrize(
    ("figure", "limit", "passed"),
    [
        ("p50_ms", "max = 100.01", True),
        ("p50_ms", "max = 99.9", False),
        ("p50_ms", "min = 99.9", True),
        ("p50_ms", "min = 100.01", False),
        ("right", "max = 2", True),  # the limit itself is kept
        ("right", "min = 2", True),
        ("right", "max = 1", False),
        ("right", "min = 3", False),
        ("wrong", "max = 0", True),
        ("error_share", "max = 0", True),
    ],
)
def test_limits_hold_or_do_not(thresholds, figure, limit, passed):
    run = run_of("right", "right", "refused")
    verdict = verdict_of(run, thresholds, f"[steady]\n{figure} = {{ {limit} }}")
    assert verdict.passed is passed
    assert verdict.judged
    assert verdict.reason == ""
    assert verdict.found is not None


def test_a_verdict_tells_phase_figure_limit_and_value(thresholds):
    verdict = verdict_of(
        run_of("wrong", "right"), thresholds, "[all]\nerror_share = { max = 0.01 }"
    )
    assert (verdict.phase, verdict.figure) == ("all", "error_share")
    assert verdict.limit == "at most 0.01"
    assert verdict.found == 0.5
    assert not verdict.passed


@pytest.mark.parametrize(
    ("outcome", "figure"),
    [
        ("wrong", "wrong"),
        ("timed_out", "unanswered"),
        ("disconnected", "unanswered"),
        ("failed", "error_share"),
        ("refused", "refused"),
    ],
)
def test_every_kind_of_failure_fails_its_limit_and_the_shipped_file(thresholds, outcome, figure):
    good, bad = run_of(*["right"] * 100), run_of(*["right"] * 99, outcome)
    text = f"[all]\n{figure} = {{ max = 0 }}"
    assert verdict_of(good, thresholds, text).passed
    assert not verdict_of(bad, thresholds, text).passed
    shipped = read_thresholds(SHIPPED)
    assert all(verdict.passed for verdict in judge(good, shipped))
    assert figure in {verdict.figure for verdict in judge(bad, shipped) if not verdict.passed}


def test_calls_that_never_ended_and_arrivals_without_room_fail_the_shipped_file():
    shipped = read_thresholds(SHIPPED)
    lost = judge(run_of(*["right"] * 100, sent=101), shipped)
    assert [verdict.figure for verdict in lost if not verdict.passed] == ["unanswered"]
    crowded = judge(run_of(*["right"] * 100, not_sent=1), shipped)
    assert [verdict.figure for verdict in crowded if not verdict.passed] == ["not_sent"]


def test_the_shipped_file_fits_every_shape():
    shipped = read_thresholds(SHIPPED)
    runs = {"steady": steady_run(seconds=4), "ramp": ramp_run(step_s=2), "spike": spike_run()}
    runs["soak"] = steady_run(seconds=4, shape="soak")
    for shape, run in runs.items():
        verdicts = judge(run, shipped)
        assert all(verdict.passed for verdict in verdicts), shape
        assert sum(verdict.judged for verdict in verdicts) >= 6, shape


@pytest.mark.parametrize("path", sorted(LIMITS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_number_of_the_shipped_files_has_a_reason(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    limits = [line for line in lines if "{" in line and not line.startswith("#")]
    assert len(limits) == sum(map(len, read_thresholds(path).limits.values())) > 3
    assert all("} # " in line for line in limits)


def test_a_figure_that_cannot_be_known_fails(thresholds):
    run = run_of("right")  # and nothing seen of the server
    for limit in ("bert_ms = { max = 1e9 }", "bert_ms = { min = 0 }"):
        verdict = verdict_of(run, thresholds, f"[steady]\n{limit}")
        assert not verdict.passed
        assert verdict.judged
        assert verdict.reason == "it cannot be known of this run"
    seen = steady_run(seconds=4)
    verdict = verdict_of(seen, thresholds, "[all]\nmemory_mb.brt = { max = 9e9 }")
    assert not verdict.passed
    assert "memory_mb.tritonserver, memory_mb.tokenizer, memory_mb.bert" in verdict.reason
    assert verdict_of(seen, thresholds, "[all]\nmemory_mb.bert = { max = 9e9 }").passed


def test_no_calls_fail_everything(thresholds):
    every = "\n".join(f"{name} = {{ max = 1e9 }}" for name in FIGURES if name != "not_sent")
    text = f"[all]\n{every}\n[steady]\n{every}"
    verdicts = judge(make_run([], [STEADY], sent=3), thresholds(text))
    assert len(verdicts) == 2 * (len(FIGURES) - 1)
    assert {(verdict.passed, verdict.reason) for verdict in verdicts} == {
        (False, "no call ended in it")
    }
    nothing = judge(make_run([], []), read_thresholds(SHIPPED))
    assert not any(verdict.passed for verdict in nothing)


def test_a_run_that_could_not_be_made_fails():
    verdicts = judge(steady_run(seconds=4), read_thresholds(SHIPPED))
    assert all(verdict.passed for verdict in verdicts)
    calls = list(steady_run(seconds=4).samples)
    run = make_run(calls, [phase("steady", 0, 6)], problem="the known vectors differ")
    first, *others = judge(run, read_thresholds(SHIPPED))
    assert not first.passed
    assert (first.phase, first.figure) == ("all", "problem")
    assert first.reason == "the known vectors differ"
    assert all(verdict.passed for verdict in others)


RELATIVE = "[steady]\np50_ms = { max_times_baseline = 1.5 }\n"


@pytest.mark.parametrize(("latency_ms", "passed"), [(70, True), (80, False)])
def test_limits_by_a_baseline(thresholds, latency_ms, passed):
    baseline = steady_run(seconds=4, latency_ms=50)
    verdict = verdict_of(
        steady_run(seconds=4, latency_ms=latency_ms), thresholds, RELATIVE, baseline
    )
    assert verdict.passed is passed
    assert verdict.limit.startswith("at most 1.5 times the baseline's 49.6")
    at_least = "[steady]\ntexts_per_s = { min_times_baseline = 0.67 }"
    verdict = verdict_of(
        steady_run(seconds=4, latency_ms=latency_ms), thresholds, at_least, baseline
    )
    assert verdict.passed is passed


def test_a_baseline_leaves_absolute_limits_alone(thresholds):
    text = "[steady]\np50_ms = { max = 80, max_times_baseline = 1.5 }"
    slow, slower = (steady_run(seconds=4, latency_ms=latency_ms) for latency_ms in (89, 90))
    absolute, relative = judge(slower, thresholds(text), slow)
    assert absolute.limit == "at most 80"
    assert not absolute.passed
    assert relative.passed


def test_without_a_baseline_its_limits_are_not_judged(thresholds):
    text = f"{RELATIVE}right = {{ min = 1 }}"
    relative, absolute = judge(run_of("right"), thresholds(text))
    assert relative.passed
    assert not relative.judged
    assert relative.reason == "there is no baseline"
    assert absolute.judged


def test_a_baseline_without_the_figure_fails(thresholds):
    verdict = verdict_of(run_of("right"), thresholds, RELATIVE, run_of("wrong"))
    assert not verdict.passed
    assert verdict.reason == "it cannot be known of the baseline"


def test_tables_of_another_shape_are_skipped_with_a_note(thresholds):
    text = "[all]\nwrong = { max = 0 }\n[soak]\nright = { min = 1e9 }\n['4 users']\nright = {min=9}"
    everywhere, soak, ramp = judge(run_of("right"), thresholds(text))
    assert everywhere.judged
    for skipped in (soak, ramp):
        assert skipped.passed
        assert not skipped.judged
        assert skipped.reason == "this run's shape is steady"


def test_a_run_that_nothing_was_judged_of_fails(thresholds):
    for text in ("[soak]\nright = { min = 1 }", RELATIVE):
        *skipped, last = judge(run_of("right"), thresholds(text))
        assert all(verdict.passed for verdict in skipped)
        assert not last.passed
        assert last.reason == "no limit is for this run"


def test_a_phase_of_the_runs_own_shape_that_is_missing_fails(thresholds):
    verdict = verdict_of(
        ramp_run(most_users=4, step_s=1), thresholds, "['64 users']\nright={min=0}"
    )
    assert not verdict.passed
    assert "it has warm-up, 1 users, 2 users, 4 users" in verdict.reason
    calls = [call(1, 0.1)]
    broken_off = make_run(calls, [phase("before", 0, 9)], shape="spike")
    assert not verdict_of(broken_off, thresholds, "[after]\nright = { min = 0 }").passed
    unknown = make_run(calls, [])
    assert not verdict_of(unknown, thresholds, "[after]\nright = { min = 0 }").passed
