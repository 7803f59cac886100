from __future__ import annotations

import pytest
from bertron_server import restart_limit
from bertron_server.restart_limit import WINDOW_S, RestartLimit


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Its one element is the time."""
    now = [1000.0]
    monkeypatch.setattr(restart_limit.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.usefixtures("clock")
def test_each_waits_twice_as_long_until_there_are_too_many() -> None:
    limit = RestartLimit(5)
    assert [limit.next_delay_s() for _ in range(6)] == [0, 1, 2, 4, 8, None]
    assert limit.used == 5


@pytest.mark.usefixtures("clock")
def test_no_wait_is_longer_than_half_a_minute() -> None:
    limit = RestartLimit(20)
    assert [limit.next_delay_s() for _ in range(20)][6:] == [30] * 13 + [30]


@pytest.mark.usefixtures("clock")
def test_none_may_be_allowed() -> None:
    assert RestartLimit(0).next_delay_s() is None


def test_what_was_long_ago_does_not_count(clock: list[float]) -> None:
    limit = RestartLimit(2)
    assert limit.next_delay_s() == 0
    clock[0] += WINDOW_S - 1
    assert limit.next_delay_s() == 1
    assert limit.next_delay_s() is None
    clock[0] += 2
    assert limit.next_delay_s() == 1  # the second is still there
    clock[0] += WINDOW_S + 1
    assert limit.next_delay_s() == 0
