"""Texts into requests, and rows back into their order."""

import numpy as np
import pytest
from bertron_client import Embeddings, InvalidInputError
from bertron_client._planning import (
    Batch,
    Reordering,
    check_lengths,
    plan_batches,
    request_bytes,
)
from hypothesis import given
from hypothesis import strategies as st


@given(st.lists(st.binary(max_size=20), max_size=200), st.integers(1, 70))
def test_a_plan_has_each_text_once_in_batches_of_even_size(texts, max_batch_size):
    batches = plan_batches(texts, None, max_batch_size=max_batch_size)
    rows = [row for batch in batches for row in batch.indices]
    assert sorted(rows) == list(range(len(texts)))
    assert len(batches) == -(-len(texts) // max_batch_size)
    sizes = [len(batch.texts) for batch in batches]
    assert not sizes or (max(sizes) <= max_batch_size and max(sizes) - min(sizes) <= 1)
    for batch in batches:
        assert batch.texts == [texts[row] for row in batch.indices]


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 9), st.integers(1, 80))
def test_no_batch_of_several_texts_is_larger_than_allowed(sizes, max_batch_size, max_bytes):
    texts = [b"x" * size for size in sizes]
    pairs = [b"y" * (size // 2) for size in sizes]
    batches = plan_batches(texts, pairs, max_batch_size=max_batch_size, max_bytes=max_bytes)
    assert sorted(row for batch in batches for row in batch.indices) == list(range(len(texts)))
    for batch in batches:
        total = sum(map(len, batch.texts)) + sum(map(len, batch.text_pairs))
        assert total <= max_bytes or len(batch.texts) == 1


@pytest.mark.parametrize(
    ("max_characters", "expected"), [(None, 2**20), (10**9, 2**20), (5000, 5000)]
)
def test_a_request_is_as_large_as_the_server_takes_and_never_huge(max_characters, expected):
    assert request_bytes(max_characters) == expected


def test_rows_are_counted_from_the_first():
    (batch,) = plan_batches([b"a", b"bb"], None, max_batch_size=8, first=100)
    assert list(batch.indices) == [101, 100]


def test_a_text_that_is_too_long_is_named_by_its_place():
    with pytest.raises(InvalidInputError, match=r"texts\[71\] has 4 characters, .* at most 3"):
        check_lengths(["abc", "abcd"], 3, "texts", 70)
    check_lengths(["a" * 1000], None, "texts")


@given(st.permutations(range(30)), st.integers(1, 7), st.booleans())
def test_rows_are_given_in_order_or_as_they_came(arrival, size, ordered):
    reordering = Reordering(ordered=ordered)
    given_out = []
    for first in range(0, len(arrival), size):
        rows = arrival[first : first + size]
        answer = Embeddings(
            np.array([[row] for row in rows], np.float32),
            np.array(rows, np.int32),
            np.array([row % 2 == 0 for row in rows]),
        )
        reordering.put(Batch(rows, [b""] * len(rows), None), answer)
        given_out += reordering.take()
        if ordered:
            assert [row.index for row in given_out] == list(range(len(given_out)))
    assert [row.index for row in given_out] == (sorted(arrival) if ordered else list(arrival))
    assert reordering.given == len(arrival)
    for row in given_out:
        assert row.vector.tolist() == [row.index]
        assert (row.token_count, row.truncated) == (row.index, row.index % 2 == 0)
