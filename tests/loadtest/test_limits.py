"""Is what the shipped limits ask for possible?"""

import random
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from bertron_loadtest import thresholds
from bertron_loadtest.suite import BELOW
from bertron_loadtest.thresholds import read_thresholds
from bertron_loadtest.workload import make_workload

LIMITS = Path(thresholds.__file__).with_name("limits")
MAX_TEXTS = 64  # of a batch
NUM_CALLS = 50_000


def tail_of_a_faultless_server(share, fixed):
    """p99 / p50 where calls of one text arrive at random and all that wait are the next batch.

    Nothing is lost, late or out of turn. A batch takes ``fixed`` and then time in proportion to its
    tokens, in units of the average text's time when batches are full.
    """
    calls = make_workload("short").calls("a user")
    tokens = np.array([len(call[0].split()) + 2 for call in islice(calls, NUM_CALLS)])
    seconds = tokens / tokens.mean() * (1 - fixed / MAX_TEXTS)
    chance = random.Random(0)
    arrivals = np.cumsum([chance.expovariate(share) for _ in range(NUM_CALLS)])
    latencies = []
    now, first = 0.0, 0
    while first < NUM_CALLS:
        now = max(now, arrivals[first])
        waiting = min(np.searchsorted(arrivals, now, "right"), first + MAX_TEXTS)
        now += fixed + seconds[first:waiting].sum()
        latencies.append(now - arrivals[first:waiting])
        first = waiting
    p50, p99 = np.percentile(np.concatenate(latencies), [50, 99])
    return p99 / p50


LIMIT = read_thresholds(LIMITS / "below.toml").limits["steady"]["p99_over_p50"].max


def test_the_tail_limit_can_be_kept_where_a_batch_costs_little_more_than_a_text():
    assert tail_of_a_faultless_server(BELOW, fixed=2.0) < LIMIT


@pytest.mark.parametrize("fixed", [0.5, 1.0])  # little, as on a CPU's few threads
def test_a_server_whose_time_goes_by_tokens_misses_it_without_a_fault(fixed):
    assert LIMIT < tail_of_a_faultless_server(BELOW, fixed) < 1.5 * LIMIT
