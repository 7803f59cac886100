"""What of the timing needs no GPU."""

import contextlib
import time

import gpu_timing
import pytest
import torch
from gpu_timing import Budget, OutOfTimeError

CPU = torch.device("cpu")


def test_inputs_together_are_three_times_the_cache():
    assert gpu_timing.sets_beyond_cache(50, bytes_a_set=10) == 15
    assert gpu_timing.sets_beyond_cache(50, bytes_a_set=11) == 14


def test_there_are_always_two_sets_and_never_many():
    assert gpu_timing.sets_beyond_cache(50, bytes_a_set=1e9) == 2
    assert gpu_timing.sets_beyond_cache(50_000_000, bytes_a_set=1) == gpu_timing.MOST_SETS


def test_a_budget_interrupts_what_takes_longer():
    started = time.monotonic()
    with pytest.raises(OutOfTimeError), Budget(0.1).enforced():
        time.sleep(20)
    assert time.monotonic() - started < 10


def test_a_budget_that_is_over_lets_nothing_begin():
    ran = []
    with pytest.raises(OutOfTimeError), Budget(0).enforced():
        ran.append(1)
    assert not ran


def test_a_budget_within_another_leaves_it_in_force():
    def inner():
        with Budget(0.05).enforced():
            time.sleep(20)

    def outer():
        with pytest.raises(OutOfTimeError):
            inner()
        time.sleep(20)

    with pytest.raises(OutOfTimeError), Budget(0.3).enforced():
        outer()


def test_an_outer_budget_interrupts_an_inner_one():
    started = time.monotonic()
    with pytest.raises(OutOfTimeError), Budget(0.1).enforced(), Budget(20).enforced():
        time.sleep(20)
    assert time.monotonic() - started < 10


def test_nothing_is_interrupted_afterwards():
    with Budget(0.05).enforced():
        pass
    time.sleep(0.1)


def test_an_interruption_that_a_library_swallows_comes_again(monkeypatch):
    monkeypatch.setattr(gpu_timing, "REPEAT_S", 0.05)

    def library():
        with contextlib.suppress(OutOfTimeError):
            time.sleep(20)
        time.sleep(20)

    with pytest.raises(OutOfTimeError), Budget(0.05).enforced():
        library()


def test_rounds_time_each_in_turns():
    calls = {"short": lambda: time.sleep(0.002), "long": lambda: time.sleep(0.008)}
    times = gpu_timing.rounds_ms(calls, CPU, rounds=3, round_s=0.02)
    assert [len(values) for values in times.values()] == [3, 3]
    assert min(times["long"]) >= 8
    assert min(times["short"]) >= 2


def test_latencies_are_of_single_calls():
    calls = []
    assert len(gpu_timing.latencies_ms(lambda: calls.append(1), CPU, 4)) == 4
    assert len(calls) == 4
