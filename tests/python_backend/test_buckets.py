"""Which bucket holds a batch, and what lies in its buffer."""

import numpy as np
import pytest
import torch
from bertron_backend.buckets import BUCKETS, Bucket, bucket_for, longest_by_class
from bertron_backend.packing import PackedRequest, split
from bertron_kernels.attention import length_class
from hypothesis import given, settings
from hypothesis import strategies as st

LENGTHS = st.lists(st.integers(1, 200), min_size=1, max_size=60)


def batch_of(lengths):
    generator = np.random.default_rng(0)
    ids, types = generator.integers(1, 9, (2, sum(lengths)), dtype=np.int32)
    (batch,) = split(PackedRequest(ids, types, list(lengths)), 1)
    return batch


@pytest.mark.parametrize(
    ("tokens", "texts", "expected"),
    [
        (1, 1, 16),
        (16, 2, 16),
        (17, 1, 32),  # one token too many
        (16, 3, 32),  # one text too many
        (4096, 512, 4096),
        (8192, 1024, 8192),
        (8193, 1, None),
        (1025, 1025, None),
    ],
)
def test_the_smallest_bucket_that_holds_tokens_and_texts(tokens, texts, expected):
    found = bucket_for(tokens, texts)
    assert (found and found.tokens) == expected


def test_buckets_double_and_hold_a_text_for_eight_tokens():
    assert [bucket.tokens for bucket in BUCKETS] == [16 * 2**i for i in range(10)]
    assert [bucket.texts for bucket in BUCKETS] == [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]


@pytest.mark.parametrize("bucket", BUCKETS)
def test_sections_lie_one_after_the_other_each_aligned_to_16_bytes(bucket):
    places = np.arange(bucket.size + 5)  # the buffer is as large as the largest bucket's
    sections = bucket.sections(places)
    assert [len(s) for s in sections] == [*[bucket.tokens] * 3, bucket.texts + 1]
    assert np.concatenate(sections).tolist() == list(range(bucket.size))
    assert all(4 * section[0] % 16 == 0 for section in sections)


def test_sections_of_a_tensor_are_views():
    bucket = Bucket(32)
    buffer = torch.zeros(bucket.size, dtype=torch.int32)
    for value, section in enumerate(bucket.sections(buffer), start=1):
        assert section.is_contiguous()
        section.fill_(value)
    assert buffer.tolist() == [1] * 32 + [2] * 32 + [3] * 32 + [4] * 5


@settings(deadline=None)
@given(LENGTHS)
def test_every_used_element_is_written_and_padding_belongs_to_no_text(lengths):
    batch = batch_of(lengths)
    tokens, texts = sum(lengths), len(lengths)
    bucket = bucket_for(tokens, texts)
    assert bucket is not None
    buffer = np.full(BUCKETS[-1].size, -7, dtype=np.int32)
    position_ids = np.arange(1, tokens + 1, dtype=np.int32)
    bucket.fill(buffer, batch, position_ids)
    *of_tokens, cu_seqlens = bucket.sections(buffer)
    for found, given_ in zip(
        of_tokens, (batch.input_ids, batch.token_type_ids, position_ids), strict=True
    ):
        assert np.array_equal(found[:tokens], given_)
        assert not found[tokens:].any()
    assert np.array_equal(cu_seqlens[: texts + 1], batch.cu_seqlens)
    assert (cu_seqlens[texts:] == tokens).all()
    assert (buffer[bucket.size :] == -7).all()


@settings(deadline=None)
@given(LENGTHS)
def test_what_lay_in_the_buffer_before_makes_no_difference(lengths):
    bucket = bucket_for(sum(lengths), len(lengths))
    assert bucket is not None
    batch = batch_of(lengths)
    fresh, used = (np.full(bucket.size, value, dtype=np.int32) for value in (0, 99))
    for buffer in (fresh, used):
        bucket.fill(buffer, batch, batch.input_ids)
    assert np.array_equal(fresh, used)


@pytest.mark.parametrize(
    ("tokens", "limit", "expected"),
    [
        (16, 512, {32: 16}),
        (32, 512, {32: 32}),
        (64, 512, {32: 32, 64: 64}),
        (8192, 512, {32: 32, 64: 64, 128: 128, 512: 512}),
        (8192, 8190, {32: 32, 64: 64, 128: 128, 512: 8190}),  # the last class has no end
        (8192, 256, {32: 32, 64: 64, 128: 128, 512: 256}),
        (8192, 100, {32: 32, 64: 64, 128: 100}),
        (256, 20, {32: 20}),
    ],
)
def test_the_longest_text_of_each_class(tokens, limit, expected):
    found = longest_by_class(tokens, limit)
    assert found == expected
    assert list(found) == sorted(found)


@settings(deadline=None)
@given(LENGTHS, st.sampled_from([200, 512, 8192]))
def test_what_is_launched_is_enough_for_every_text_of_its_class(lengths, limit):
    bucket = bucket_for(sum(lengths), len(lengths))
    assert bucket is not None
    launched = longest_by_class(bucket.tokens, limit)[length_class(max(lengths))]
    assert launched >= max(lengths)
    assert length_class(launched) == length_class(max(lengths))
