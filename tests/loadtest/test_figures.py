import dataclasses
import math

import numpy as np
import pytest
from bertron_loadtest.figures import (
    FIGURES,
    batch_sizes,
    batch_tokens,
    done_by,
    errors_by_class,
    figures_by_phase,
    figures_of,
    find_phase,
    measured_span,
    percentile,
)
from bertron_loadtest.run_record import ProcessUse, Snapshot, StepCounters
from bertron_loadtest.samples import Samples
from made_up_runs import BEGIN_S, call, make_run, phase, ramp_run, steady_run

STEADY = phase("steady", 10, 20)


def figures(*calls, during=STEADY, **fields):
    return figures_of(make_run(calls, [STEADY], **fields), during)


def test_the_names_are_those_of_the_list_and_of_the_processes():
    run = steady_run(seconds=4)
    names = [*FIGURES]
    for process in ("tritonserver", "tokenizer", "bert", "load_generator"):
        names += [f"cpu_cores.{process}", f"memory_mb.{process}"]
        names.append(f"memory_slope_mb_per_min.{process}")
    for found in figures_by_phase(run).values():
        assert list(found) == names
    assert list(figures_by_phase(run)) == ["warm-up", "steady", "all"]


def test_a_call_over_an_edge_counts_for_the_part_of_it_that_is_inside():
    # A quarter of 8 texts, 3 texts, and half of 4 texts in ten seconds.
    found = figures(
        call(7, 4, texts=8, tokens=80),
        call(12, 1, texts=3, tokens=30),
        call(19, 2, texts=4, tokens=40),
    )
    assert found["texts_per_s"] == pytest.approx((2 + 3 + 2) / 10)
    assert found["tokens_per_s"] == pytest.approx((20 + 30 + 20) / 10)
    assert found["calls_per_s"] == pytest.approx((1 / 4 + 1 + 1 / 2) / 10)
    assert found["calls"] == found["right"] == 2  # the third ends after the phase


def test_a_call_longer_than_the_phase_counts_for_its_share():
    run = make_run([call(0, 40, texts=20)], [STEADY, phase("after", 20, 30)])
    found = figures_of(run, STEADY)
    assert found["texts_per_s"] == pytest.approx(20 / 40)
    assert found["calls"] == 0
    assert found["p50_ms"] is None
    assert found["error_share"] is None


def test_what_was_held_up_until_after_the_last_phase_is_in_its_tail():
    prompt = [call(10 + 0.09 * number, 0.05) for number in range(98)]
    found = figures(*prompt, call(12, 15), call(13, 15))
    assert found["p50_ms"] == pytest.approx(50)
    assert found["p99_ms"] == pytest.approx(15_000)
    assert found["calls"] == 98  # what ended in it


def test_the_parts_of_a_run_add_up_to_it():
    run = steady_run(seconds=12, latency_ms=900)
    parts = [phase("part", begin, begin + 1) for begin in range(2, 14)]
    rates = [figures_of(run, part)["texts_per_s"] for part in parts]
    assert np.mean(rates) == pytest.approx(figures_of(run, None)["texts_per_s"])
    counts = [figures_of(run, part)["calls"] for part in parts]
    assert sum(counts) == figures_of(run, find_phase(run, "steady"))["calls"]


def test_a_call_that_ends_on_an_edge_belongs_to_one_phase():
    phases = [phase("before", 0, 10), phase("spike", 10, 20)]
    run = make_run([call(9.5, 0.5)], phases)
    assert [figures_of(run, one)["calls"] for one in phases] == [0, 1]
    assert [figures_of(run, one)["p50_ms"] for one in phases] == [None, pytest.approx(500)]


def test_a_call_of_no_time_counts_at_once():
    assert figures(call(15, 0.0, texts=5))["texts_per_s"] == pytest.approx(0.5)


def test_only_right_calls_have_a_rate_and_a_latency():
    found = figures(
        call(11, 0.1, texts=10),
        call(12, 5.0, texts=1000, outcome="wrong"),
        call(12, 6.0, texts=1000, outcome="refused"),
    )
    assert found["texts_per_s"] == pytest.approx(1.0)
    assert found["max_ms"] == pytest.approx(100)


def test_percentiles_are_of_the_nearest_rank():
    latencies = [call(11, (index + 1) / 1000) for index in range(100)]
    found = figures(*reversed(latencies))
    assert found["p50_ms"] == pytest.approx(50)
    assert found["p95_ms"] == pytest.approx(95)
    assert found["p99_ms"] == pytest.approx(99)
    assert found["max_ms"] == pytest.approx(100)
    assert found["mean_ms"] == pytest.approx(50.5)
    assert found["p99_over_p50"] == pytest.approx(1.98)
    assert percentile(np.array([3.0, 1.0, 2.0]), 50) == 2
    assert percentile(np.array([4.0, 1.0, 2.0, 3.0]), 50) == 2
    assert percentile(np.arange(1.0, 701), 99) == 693  # 0.99 * 700 is above 693 in floats


def calls_of_100_s(slow):
    """Calls of a second, ten a second and one after the other; slow ones take ten."""
    return [call(index / 10, 10.0 if index in slow else 1.0) for index in range(1000)]


@pytest.mark.parametrize(
    ("slow", "tail", "usual_tail"),
    [
        (range(500, 530), 10, 1),  # something else had the cores for 3 s
        (range(0, 1000, 40), 10, 10),  # the server now and then
    ],
)
def test_the_usual_tail_is_that_of_most_of_the_time(slow, tail, usual_tail):
    found = figures_of(make_run(calls_of_100_s(slow), [phase("steady", 0, 111)]), None)
    assert found["p99_over_p50"] == pytest.approx(tail)
    assert found["usual_p99_over_p50"] == pytest.approx(usual_tail)


def test_four_calls_have_no_usual_tail():
    calls = [call(11, 0.1)] * 5
    assert figures(*calls)["usual_p99_over_p50"] == pytest.approx(1)
    assert figures(*calls[:4])["usual_p99_over_p50"] is None


def test_one_call_is_every_percentile():
    found = figures(call(11, 0.25))
    for name in ("mean_ms", "p50_ms", "p95_ms", "p99_ms", "max_ms"):
        assert found[name] == pytest.approx(250)
    assert found["p99_over_p50"] == pytest.approx(1)


def test_no_call_has_counts_and_rates_of_nothing_and_no_latency():
    for during in (STEADY, None):
        found = figures(during=during)
        assert found["calls"] == found["right"] == found["unanswered"] == 0
        assert found["texts_per_s"] == 0
        for name in ("p50_ms", "p99_ms", "mean_ms", "error_share", "server_ms", "padding_saved"):
            assert found[name] is None


def test_a_run_without_phases_has_no_rates():
    found = figures_of(make_run([call(1, 1)], []), None)
    assert found["calls"] == 1
    assert found["texts_per_s"] is None


def test_counts_by_outcome_and_their_shares():
    outcomes = ["right"] * 10 + ["wrong"] * 2 + ["refused"] * 4 + ["timed_out", "disconnected"] * 1
    found = figures(*(call(11, 1, outcome=outcome) for outcome in [*outcomes, "failed", "failed"]))
    assert (found["calls"], found["right"], found["wrong"], found["refused"]) == (20, 10, 2, 4)
    assert (found["timed_out"], found["disconnected"], found["failed"]) == (1, 1, 2)
    assert found["unanswered"] == 2
    assert found["error_share"] == pytest.approx(6 / 20)
    assert found["refused_share"] == pytest.approx(4 / 20)


def test_the_whole_run_counts_every_call_but_measures_without_the_warm_up():
    calls = [
        call(1, 1, texts=50),  # of the warm-up
        call(12, 1, texts=10),
        call(19, 4, texts=8),  # ends after the last phase
        call(3, 1, outcome="wrong"),
    ]
    phases = [phase("warm-up", 0, 10), STEADY]
    run = make_run(calls, phases, sent=6, not_sent=7)
    found = figures_of(run, None)
    assert found["calls"] == 4
    assert found["wrong"] == 1
    assert found["unanswered"] == 2  # begun, and never ended
    assert found["not_sent"] == 7
    assert found["texts_per_s"] == pytest.approx((10 + 2) / 10)
    assert found["max_ms"] == pytest.approx(4000)  # a slow last call does not vanish
    assert found["p50_ms"] == pytest.approx(1000)
    steady = figures_of(run, STEADY)
    assert steady["calls"] == 1
    assert steady["unanswered"] == 0
    assert steady["not_sent"] is None


def test_a_step_of_a_ramp_has_a_second_to_settle():
    step = phase("8 users", 10, 20)
    calls = [call(10, 0.5, texts=90), call(15, 0.1, texts=9), call(10, 0.4, outcome="failed")]
    found = figures_of(make_run(calls, [step]), step)
    assert found["texts_per_s"] == pytest.approx(9 / 9)
    assert found["max_ms"] == pytest.approx(100)
    assert found["failed"] == 1  # an error counts at any time
    short = phase("8 users", 10, 11)
    assert measured_span(make_run([], [short]), short) == (BEGIN_S + 10.5, BEGIN_S + 11)
    assert measured_span(make_run([], [STEADY]), STEADY) == (BEGIN_S + 10, BEGIN_S + 20)


def test_tokens_are_unknown_where_a_call_does_not_say():
    assert figures(call(11, 1, tokens=7), call(12, 1, tokens=0))["tokens_per_s"] is None
    silent_elsewhere = [call(11, 1, tokens=7), call(1, 1, tokens=0)]
    assert figures(*silent_elsewhere)["tokens_per_s"] == pytest.approx(0.7)


def test_the_generators_lag():
    calls = [call(11, 1, lag_s=index / 1000) for index in range(1, 101)]
    assert figures(*calls)["generator_lag_p99_ms"] == pytest.approx(99)


def test_done_by_spreads_each_call():
    samples = Samples([call(0, 10, texts=10), call(5, 1, texts=4)])
    done = done_by(samples, samples.texts, [BEGIN_S + time for time in (-1, 5, 5.5, 6, 20)])
    assert done == pytest.approx([0, 5, 5.5 + 2, 6 + 4, 14])


def test_errors_by_class_are_counted_and_ordered():
    calls = [call(1, 1, outcome="failed", error="B: b")] * 2
    calls += [call(1, 1, outcome="refused", error="A: a")] * 3
    calls += [call(1, 1, outcome="failed", error="A: a")] * 2 + [call(1, 1)] * 9
    assert errors_by_class(make_run(calls, [STEADY])) == [
        ("refused", "A: a", 3),
        ("failed", "A: a", 2),
        ("failed", "B: b", 2),
    ]


def test_an_unknown_phase_is_named_with_those_there_are():
    run = steady_run(seconds=2)
    assert find_phase(run, "all") is None
    assert find_phase(run, "steady").name == "steady"
    with pytest.raises(ValueError, match=r"no phase 'soak'; it has warm-up, steady, all"):
        find_phase(run, "soak")


# What the server tells.


def counters(requests, **others):
    """Of a step; times in ms a request."""
    fields = {"texts": requests, "executions": 0, "total_ms": 0, "queue_ms": 0, "compute_ms": 0}
    fields |= others
    times = {f"{name}_ns": int(fields.pop(f"{name}_ms") * requests * 1e6) for name in TIMES}
    return StepCounters(requests, 0, **fields, **times)


TIMES = ("total", "queue", "compute")


def snapshot(time_s, requests):
    steps = {
        "ensemble": counters(requests, total_ms=40),
        "tokenizer": counters(requests, queue_ms=1, compute_ms=2),
        "bert": counters(*(requests,), queue_ms=10, compute_ms=20, executions=requests // 4),
    }
    return Snapshot(BEGIN_S + time_s, steps)


def test_where_the_time_of_a_request_went():
    snapshots = [snapshot(10, 0), snapshot(20, 100)]
    calls = [call(11, 0.05) for _ in range(100)]
    found = figures(*calls, snapshots=snapshots)
    assert found["server_ms"] == pytest.approx(40)
    assert found["network_ms"] == pytest.approx(10)
    assert found["tokenizer_queue_ms"] == pytest.approx(1)
    assert found["tokenizer_ms"] == pytest.approx(2)
    assert found["bert_queue_ms"] == pytest.approx(10)
    assert found["bert_ms"] == pytest.approx(20)
    assert found["between_steps_ms"] == pytest.approx(40 - 33)
    assert found["batch_texts"] == pytest.approx(4)


def test_the_network_is_unknown_where_a_call_is_several_requests():
    snapshots = [snapshot(10, 0), snapshot(20, 100)]  # requests of one text
    found = figures(*[call(11, 0.05, texts=2)] * 50, snapshots=snapshots)
    assert found["server_ms"] == pytest.approx(40)
    assert found["network_ms"] is None


def test_counters_are_interpolated_at_the_edges_of_a_phase():
    # 100 requests of 10 ms until second 15, then 100 of 30 ms until 25.
    steps = [StepCounters(*fields) for fields in ((0,) * 7, (100, 0, 100, 0, 1_000_000_000, 0, 0))]
    steps.append(StepCounters(200, 0, 200, 0, 4_000_000_000, 0, 0))
    snapshots = [
        Snapshot(BEGIN_S + time_s, {"ensemble": step})
        for time_s, step in zip((5, 15, 25), steps, strict=True)
    ]
    found = figures(snapshots=snapshots)
    assert found["server_ms"] == pytest.approx((50 * 10 + 50 * 30) / 100)
    late = figures(snapshots=snapshots, during=phase("steady", 10, 17))
    assert late["server_ms"] == pytest.approx((50 * 10 + 20 * 30) / 70)
    early = figures(snapshots=snapshots, during=phase("steady", 6, 14))
    assert early["server_ms"] == pytest.approx(10)


def test_a_server_that_began_anew_or_was_hardly_seen_tells_nothing():
    anew = [snapshot(10, 0), snapshot(14, 50), snapshot(15, 10), snapshot(20, 70)]
    assert figures(snapshots=anew)["server_ms"] is None
    assert figures(snapshots=anew, during=phase("steady", 10, 14))["server_ms"] is not None
    dead = [
        snapshot(10, 0),
        snapshot(14, 50),
        *(Snapshot(BEGIN_S + time) for time in range(15, 21)),
    ]
    found = figures(snapshots=dead)
    assert found["server_ms"] is None
    assert found["batch_texts"] is None
    longer = [snapshot(10, 0), snapshot(16, 60), Snapshot(BEGIN_S + 20)]
    assert figures(snapshots=longer)["server_ms"] == pytest.approx(40)


def test_no_request_in_a_phase_has_no_mean():
    assert figures(snapshots=[snapshot(10, 50), snapshot(20, 50)])["server_ms"] is None


def test_a_failed_server_leaves_counts_and_nothing_else():
    calls = [call(11, 30, outcome="timed_out", error="TimeoutError: late")] * 3
    calls += [call(12, 0.1, outcome="disconnected", error="ServerUnavailableError")] * 2
    found = figures(*calls, during=None, sent=6, snapshots=[Snapshot(BEGIN_S + 9)])
    assert found["unanswered"] == 6
    assert found["error_share"] == 1
    assert found["texts_per_s"] == 0
    known = {name for name, value in found.items() if value is not None}
    assert not known & {"p50_ms", "max_ms", "server_ms", "network_ms", "batch_texts"}


def test_batches_by_texts_and_tokens():
    run = steady_run(seconds=20, warm_up_s=0)
    texts = int(run.samples.texts.sum())
    sizes = batch_sizes(run, find_phase(run, "steady"))
    assert sizes.keys() == {4, 12}  # half of the executions each
    assert sum(sizes.values()) == pytest.approx(texts / 8, rel=0.01)
    by_edge = batch_tokens(run, find_phase(run, "steady"))
    assert list(by_edge) == [64, 128, 256, math.inf]
    assert by_edge[64] == by_edge[math.inf] == 0
    assert by_edge[128] == pytest.approx(sizes[4], abs=1)
    assert by_edge[256] == pytest.approx(sizes[12], abs=1)
    found = figures_of(run, None)
    assert found["batch_texts"] == pytest.approx(8, rel=0.01)
    assert found["batch_tokens"] == pytest.approx(160, rel=0.01)
    assert found["padding_saved"] == pytest.approx(0.2)


def test_unknown_batches_are_empty():
    run = make_run([], [STEADY], [Snapshot(BEGIN_S), Snapshot(BEGIN_S + 30)])
    assert batch_sizes(run, STEADY) == {}
    assert batch_tokens(run, STEADY) == {}


def memory_run(held_mb, every_s, phases):
    snapshots = [
        Snapshot(
            BEGIN_S + index * every_s,
            processes={"load generator": ProcessUse(0.5 * index * every_s, int(held * 1e6))},
        )
        for index, held in enumerate(held_mb)
    ]
    return make_run([], phases, snapshots)


def test_cpu_and_memory_of_a_process():
    soak = phase("soak", 0, 1200)
    # 5 GB more in the first minute, which is settling; its end is not, and 1 MB below a line.
    held = [100, 5002] + [5000 + 3 * minute for minute in range(2, 21)]
    found = figures_of(memory_run(held, 60, [soak]), soak)
    assert found["cpu_cores.load_generator"] == pytest.approx(0.5)
    assert found["memory_mb.load_generator"] == pytest.approx(5060)
    # The point is 9.5 minutes from the middle of 20, whose squared distances sum up to 665.
    slope = found["memory_slope_mb_per_min.load_generator"]
    assert slope == pytest.approx(3 + 9.5 / 665)


def test_the_slope_is_of_least_squares_and_needs_three_readings():
    short = phase("soak", 0, 3)
    # Readings at 1, 2, 3 s (a tenth settles): 4, 5, 9 MB; the best line rises by 2.5 MB a second.
    found = figures_of(memory_run([99, 4, 5, 9], 1, [short]), short)
    assert found["memory_slope_mb_per_min.load_generator"] == pytest.approx(150)
    short = phase("soak", 0, 2)
    found = figures_of(memory_run([99, 4, 5, 9], 1, [short]), short)
    assert found["memory_slope_mb_per_min.load_generator"] is None


def test_a_process_that_is_gone_has_no_memory_later():
    run = memory_run([100, 100, 100], 1, [phase("before", 0, 2), phase("after", 5, 9)])
    assert figures_of(run, run.phases[0])["memory_mb.load_generator"] == pytest.approx(100)
    assert figures_of(run, run.phases[1])["memory_mb.load_generator"] is None
    assert figures_of(run, run.phases[1])["cpu_cores.load_generator"] is None


def test_figures_of_a_made_up_ramp():
    run = ramp_run()
    by_phase = figures_by_phase(run)
    assert by_phase["4 users"]["refused"] == 0
    assert by_phase["64 users"]["refused_share"] == pytest.approx(0.2, abs=0.03)
    assert by_phase["8 users"]["texts_per_s"] == pytest.approx(400, rel=0.03)
    assert by_phase["64 users"]["p50_ms"] == pytest.approx(160, rel=0.03)
    assert by_phase["16 users"]["network_ms"] == pytest.approx(2, abs=0.5)
    assert by_phase["16 users"]["tokenizer_ms"] == pytest.approx(0.5)
    without = dataclasses.replace(run, snapshots=())
    assert figures_of(without, None)["server_ms"] is None
