"""Every batch is counted once, and the counts arrive without anybody's request waiting."""

import re
import threading
import time
from collections import Counter as Sums
from pathlib import Path

import pytest
from bertron_backend import batch_metrics
from bertron_backend.batch_metrics import (
    BUCKETS,
    DESCRIPTIONS,
    BatchCounts,
    Counter,
    CountPublisher,
)

pytestmark = pytest.mark.timeout(60)


ARCHITECTURE = Path(__file__).parents[2] / "docs" / "architecture.md"


def counts_of(*batches):
    counts = BatchCounts()
    for lengths in batches:
        counts.add(len(lengths), sum(lengths), max(lengths))
    return counts


def plain(grown):
    return {counter.name: growth for counter, growth in grown.items() if counter.le is None}


def buckets(grown):
    return {counter.le: growth for counter, growth in grown.items() if counter.le}


def test_a_padded_batch_is_as_long_as_its_longest_text():
    grown = counts_of([3, 60, 1], [7], [5, 5]).take()
    assert plain(grown) == {
        "bertron_tokens_total": 64 + 7 + 10,
        "bertron_padded_tokens_total": 180 + 7 + 10,
        "bertron_texts_total": 6,
        "bertron_batch_tokens_count": 3,
        "bertron_batch_tokens_sum": 81,
    }


@pytest.mark.parametrize("bound", BUCKETS)
def test_a_batch_is_in_the_buckets_from_its_own_on(bound):
    for tokens, first in ((bound, bound), (bound + 1, 2 * bound)):
        found = buckets(counts_of([tokens]).take())
        assert list(found) == [*(str(2**power) for power in range(4, 15)), "+Inf"]
        expected = [int(float(le) >= first) for le in found]
        assert list(found.values()) == expected


def test_what_is_taken_is_not_taken_again_and_no_counter_is_missing():
    counts = counts_of([3, 4])
    first, second = counts.take(), counts.take()
    assert list(first) == list(second)
    assert {counter.name for counter in first} == set(DESCRIPTIONS)
    assert set(second.values()) == {0}


def test_nothing_is_lost_or_counted_twice_while_another_thread_takes():
    counts, sums = BatchCounts(), Sums()
    publisher = threading.Thread(target=lambda: [sums.update(counts.take()) for _ in range(3000)])
    publisher.start()
    for _ in range(3000):
        counts.add(2, 5, 3)
    publisher.join()
    sums.update(counts.take())
    assert sums[Counter("bertron_tokens_total")] == 15_000
    assert sums[Counter("bertron_batch_tokens_bucket", "16")] == 3000
    assert sums[Counter("bertron_padded_tokens_total")] == 18_000


def test_counters_are_there_from_the_start_and_grow_each_period(monkeypatch):
    monkeypatch.setattr(batch_metrics, "PERIOD_S", 0.02)
    counts, sums, threads = BatchCounts(), Sums(), set()

    def publish(counter, growth):
        sums[counter] += growth
        threads.add(threading.current_thread().name)

    tokens = Counter("bertron_tokens_total")
    publisher = CountPublisher(counts, publish)
    assert len(sums) == len(counts.take())
    assert set(sums.values()) == {0}
    for expected in (8, 16):
        counts.add(1, 8, 8)
        deadline_s = time.monotonic() + 10
        while sums[tokens] < expected:
            assert time.monotonic() < deadline_s
            time.sleep(0.005)
    assert threads == {"MainThread", "metrics"}
    publisher.stop()
    assert "metrics" not in [thread.name for thread in threading.enumerate()]


def test_stopping_needs_no_period_to_be_over():
    publisher = CountPublisher(BatchCounts(), lambda *_: None)
    started_s = time.monotonic()
    publisher.stop()
    assert time.monotonic() - started_s < batch_metrics.PERIOD_S / 2


def test_the_architecture_page_lists_every_counter():
    page = ARCHITECTURE.read_text(encoding="utf-8")
    assert re.findall(r"^\| `(bertron_\w+)` \| counter \|", page, re.MULTILINE) == [*DESCRIPTIONS]
