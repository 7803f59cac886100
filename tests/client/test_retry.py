"""Which faults are tried again, and after how long."""

import pytest
from bertron_client import (
    DeadlineExceededError,
    InvalidInputError,
    OverloadedError,
    ProtocolError,
    RetryPolicy,
    ServerError,
    ServerUnavailableError,
)


@pytest.mark.parametrize(
    "kind", [InvalidInputError, ServerError, ProtocolError, DeadlineExceededError]
)
def test_what_does_not_pass_by_itself_is_not_tried_again(kind):
    assert RetryPolicy().pause_s(kind("no"), 0) is None


@pytest.mark.parametrize("kind", [ServerUnavailableError, OverloadedError])
def test_pauses_double_up_to_the_longest_and_are_spread(kind):
    policy = RetryPolicy(max_retries=5, first_pause_s=1, longest_pause_s=4)
    for retries, longest in enumerate([1, 2, 4, 4, 4]):
        pauses = [policy.pause_s(kind("no"), retries) for _ in range(200)]
        assert longest / 2 <= min(pauses) < 0.65 * longest
        assert 0.85 * longest < max(pauses) <= longest
    assert policy.pause_s(kind("no"), 5) is None


def test_the_servers_own_time_is_kept():
    error = OverloadedError("busy")
    error.retry_after_s = 7.5
    assert RetryPolicy().pause_s(error, 0) == 7.5
    assert RetryPolicy(max_retries=0).pause_s(error, 0) is None


def test_a_policy_that_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="max_retries is -1"):
        RetryPolicy(max_retries=-1)
    with pytest.raises(ValueError, match="first_pause_s is 9"):
        RetryPolicy(first_pause_s=9, longest_pause_s=5)


def test_a_long_outage_does_not_overflow_the_pause():
    assert RetryPolicy(max_retries=5000).pause_s(ServerUnavailableError("x"), 4000) <= 5.0
