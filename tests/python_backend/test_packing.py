"""Padding dropped, limits checked, batches split between texts."""

import numpy as np
import pytest
from bertron_backend.errors import InvalidInputError
from bertron_backend.packing import TokenRequest, Vocabulary, join, pack_request, split
from hypothesis import given
from hypothesis import strategies as st

VOCABULARY = Vocabulary(vocab_size=100, type_vocab_size=2, max_tokens_per_text=8)


def request_of(lengths, width=None, left=False):
    """Tokens 1, 2, 3, ... in reading order; junk in the padding."""
    width = width or max(lengths)
    ids = np.full((len(lengths), width), 99, dtype=np.int32)
    mask = np.zeros_like(ids)
    token = 1
    for row, length in enumerate(lengths):
        place = slice(width - length, None) if left else slice(length)
        ids[row, place] = np.arange(token, token + length)
        mask[row, place] = 1
        token += length
    return TokenRequest(ids, mask, np.zeros_like(ids))


@pytest.mark.parametrize("left", [False, True])
def test_padding_is_dropped_on_either_side(left):
    packed = pack_request(request_of([3, 1, 5], width=8, left=left), VOCABULARY)
    assert packed.input_ids.tolist() == list(range(1, 10))
    assert packed.lengths == [3, 1, 5]


def test_zero_texts_are_refused():
    empty = np.zeros((0, 4), dtype=np.int32)
    with pytest.raises(InvalidInputError, match="0 texts"):
        pack_request(TokenRequest(empty, empty, empty), VOCABULARY)


def test_a_text_without_tokens_is_named():
    request = request_of([3, 2])
    request.attention_mask[1] = 0
    with pytest.raises(InvalidInputError, match="text 1 has 0 tokens"):
        pack_request(request, VOCABULARY)


def test_too_long_a_text_is_named():
    with pytest.raises(InvalidInputError, match="text 1 has 9 tokens, the model takes at most 8"):
        pack_request(request_of([3, 9]), VOCABULARY)


@pytest.mark.parametrize("wrong", [100, -1, 2**31 - 1])
def test_an_id_outside_the_vocabulary_is_named(wrong):
    request = request_of([3])
    request.input_ids[0, 1] = wrong
    with pytest.raises(InvalidInputError, match=rf"input_ids has {wrong}, the model knows 0 to 99"):
        pack_request(request, VOCABULARY)


def test_a_token_type_outside_the_table_is_named():
    request = request_of([3])
    request.token_type_ids[0, 2] = 2
    with pytest.raises(InvalidInputError, match="token_type_ids has 2, the model knows 0 to 1"):
        pack_request(request, VOCABULARY)


@pytest.mark.parametrize("types", [0, 1])
def test_models_without_token_types_take_any_tokenizers(types):
    request = request_of([3])
    request.token_type_ids[:] = 1
    vocabulary = Vocabulary(vocab_size=100, type_vocab_size=types, max_tokens_per_text=8)
    packed = pack_request(request, vocabulary)
    assert types == 0 or not packed.token_type_ids.any()


def test_disagreeing_shapes_are_named():
    request = request_of([3, 2])
    wrong = TokenRequest(request.input_ids, request.attention_mask[:, :2], request.token_type_ids)
    with pytest.raises(InvalidInputError, match=r"input_ids is \[2, 3\], attention_mask \[2, 2\]"):
        pack_request(wrong, VOCABULARY)


@given(
    st.lists(st.lists(st.integers(1, 8), min_size=1, max_size=4), min_size=1, max_size=8),
    st.integers(1, 12),
)
def test_splitting_loses_and_reorders_nothing(request_lengths, parts):
    vocabulary = Vocabulary(vocab_size=1000, type_vocab_size=2, max_tokens_per_text=8)
    requests = [pack_request(request_of(lengths), vocabulary) for lengths in request_lengths]
    texts = join(requests)
    batches = list(split(texts, parts))
    assert 1 <= len(batches) <= parts
    tokens = np.concatenate([batch.input_ids for batch in batches])
    assert np.array_equal(tokens, np.concatenate([request.input_ids for request in requests]))
    lengths = np.concatenate([np.diff(batch.cu_seqlens) for batch in batches])
    assert lengths.tolist() == [length for request in request_lengths for length in request]
    share = len(tokens) / parts
    for batch in batches:
        assert batch.max_seqlen == np.diff(batch.cu_seqlens).max()
        assert batch.cu_seqlens[-1] == len(batch.input_ids) == len(batch.token_type_ids)
        # Each end is off its share by less than a text.
        assert len(batch.input_ids) <= share + max(texts.lengths)
