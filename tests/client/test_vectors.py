"""Forms of vectors: what each keeps, to which error, at awkward sizes."""

import base64

import numpy as np
import pytest
from bertron_client._vectors import (
    BinaryVectors,
    Int8Vectors,
    cut_and_normalize,
    to_base64,
    to_binary,
    to_float16,
    to_int8,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

# No component so large that the sum of rounding errors leaves float32's range.
FLOATS = st.floats(-(2.0**126), 2.0**126, width=32)
VECTORS = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, min_side=1), elements=FLOATS)


def unit_vectors(count, size=384, seed=0):
    rows = np.random.default_rng(seed).standard_normal((count, size))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@given(VECTORS)
def test_int8_is_off_by_at_most_half_a_scale(vectors):
    small = to_int8(vectors)
    largest = np.abs(vectors.astype(np.float64)).max(axis=1)
    scales = small.scales.astype(np.float64)
    assert (scales >= largest / 127).all()
    np.testing.assert_allclose(scales, largest / 127, rtol=2**-23, atol=2.0**-149)
    assert np.abs(small.codes.astype(int)).max() <= 127
    error = np.abs(vectors.astype(np.float64) - small.to_float32())
    assert (error <= scales[:, None] * (0.5 + 2**-16)).all()


@given(VECTORS)
def test_int8_of_the_negative_is_the_negative(vectors):
    np.testing.assert_array_equal(to_int8(-vectors).codes, -to_int8(vectors).codes)


def test_int8_keeps_the_direction():
    vectors = unit_vectors(1000)
    restored = to_int8(vectors).to_float32()
    cosines = np.sum(restored * vectors, axis=1) / np.linalg.norm(restored, axis=1)
    assert cosines.min() > 0.9999  # 0.99995 at least; all-MiniLM-L6-v2's own: 0.99994


def test_int8_of_rows_that_have_no_scale():
    tiny = np.float32(2.0**-149)  # the smallest above 0, and 50 times it: below 127 in code
    small = to_int8(np.array([[0, 0, 0], [-0.0, 0, 0], [tiny, -50 * tiny, 0]], np.float32))
    assert list(small.scales) == [0, 0, tiny]
    np.testing.assert_array_equal(small.codes, [[0, 0, 0], [0, 0, 0], [1, -50, 0]])
    assert to_int8(np.empty((0, 5), np.float32)).codes.shape == (0, 5)


def test_int8_types():
    small = to_int8(unit_vectors(2))
    assert isinstance(small, Int8Vectors)
    assert (small.codes.dtype, small.scales.dtype) == (np.int8, np.float32)
    assert small.to_float32().dtype == np.float32
    assert (small.codes.shape, small.scales.shape) == ((2, 384), (2,))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_int8_of_what_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match=r"vectors\[1\] is not finite"):
        to_int8(np.array([[1, 2], [bad, 1]], np.float32))


def test_binary_is_the_sign_and_its_bit_order_is_big():
    row = np.array([[1, -1, 0, -0.0, 2, -3, 1e-30, -1, 5]], np.float32)  # 9: one bit in byte 1
    signs = to_binary(row)
    assert (signs.size, signs.bits.dtype) == (9, np.uint8)
    np.testing.assert_array_equal(signs.bits, [[0b10001010, 0b10000000]])


@given(st.data(), st.integers(1, 70), st.integers(0, 5), st.integers(0, 5))
def test_hamming_distance_is_how_many_signs_differ(data, size, count, others):
    first = data.draw(arrays(np.float32, (count, size), elements=FLOATS))
    second = data.draw(arrays(np.float32, (others, size), elements=FLOATS))
    distances = to_binary(first).hamming_distance(to_binary(second))
    expected = ((first > 0)[:, None, :] != (second > 0)[None, :, :]).sum(axis=2)
    assert np.issubdtype(distances.dtype, np.integer)
    assert distances.shape == (count, others)
    np.testing.assert_array_equal(distances, expected)


def test_hamming_distance_beyond_a_byte():
    ones, none = to_binary(np.ones((1, 4096), np.float32)), to_binary(-np.ones((1, 4096)))
    assert ones.hamming_distance(none).tolist() == [[4096]]
    assert ones.hamming_distance(ones).tolist() == [[0]]


def test_hamming_distance_of_different_sizes_is_refused():
    # As many bytes, yet not as many components.
    with pytest.raises(ValueError, match="of 9 components, the others of 10"):
        to_binary(np.ones((1, 9))).hamming_distance(to_binary(np.ones((1, 10))))


def test_signs_find_the_neighbour():
    vectors = unit_vectors(200)
    noisy = vectors + 0.3 * unit_vectors(200, seed=1)
    distances = to_binary(noisy).hamming_distance(to_binary(vectors))
    np.testing.assert_array_equal(distances.argmin(axis=1), np.arange(200))
    assert isinstance(to_binary(noisy), BinaryVectors)


def test_float16_rounds_and_refuses_what_it_cannot_hold():
    vectors = unit_vectors(50)
    halves = to_float16(vectors)
    assert halves.dtype == np.float16
    np.testing.assert_allclose(halves, vectors, rtol=2**-11, atol=2**-25)
    assert to_float16(np.array([[65504, -65504]], np.float32)).tolist() == [[65504, -65504]]
    with pytest.raises(ValueError, match=r"vectors\[1, 2\] is -65505, float16 ends at 65504"):
        to_float16(np.array([[0, 0, 0], [1, 2, -65505]], np.float32))
    with pytest.raises(ValueError, match="is inf, float16 ends"):
        to_float16(np.array([[np.inf]], np.float32))


@given(VECTORS)
def test_base64_is_little_endian_float32(vectors):
    texts = to_base64(vectors)
    assert all(isinstance(text, str) for text in texts)
    rows = [np.frombuffer(base64.b64decode(text, validate=True), "<f4") for text in texts]
    np.testing.assert_array_equal(np.array(rows), vectors)


def test_base64_of_a_known_vector_and_of_a_strided_one():
    assert to_base64(np.array([[1, -2]], np.float32)) == ["AACAPwAAAMA="]
    every_second = np.array([[1, 9, -2, 9]], np.float32)[:, ::2]
    assert to_base64(every_second) == ["AACAPwAAAMA="]


@given(VECTORS)
def test_normalized_vectors_have_length_1_or_are_zero(vectors):
    before = vectors.copy()
    result = cut_and_normalize(vectors, True, None)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(vectors, before)
    lengths = np.linalg.norm(result.astype(np.float64), axis=1)
    is_zero = ~vectors.any(axis=1)
    np.testing.assert_allclose(lengths[~is_zero], 1, rtol=1e-6)
    assert not result[is_zero].any()
    exact = vectors.astype(np.float64)
    exact /= np.where(is_zero, 1, np.linalg.norm(exact, axis=1))[:, None]
    np.testing.assert_allclose(result, exact, rtol=2**-23, atol=2.0**-149)


def test_normalizing_twice_changes_the_last_bit_at_most():
    once = cut_and_normalize(unit_vectors(100) * 7, True, None)
    np.testing.assert_allclose(cut_and_normalize(once, True, None), once, rtol=3e-7)


def test_vectors_are_cut_before_they_are_normalized():
    vectors = np.array([[3, 4, 12], [0, 0, 5]], np.float32)
    np.testing.assert_array_equal(cut_and_normalize(vectors, None, 2), [[3, 4], [0, 0]])
    np.testing.assert_allclose(cut_and_normalize(vectors, True, 2), [[0.6, 0.8], [0, 0]])
    assert cut_and_normalize(vectors, None, np.int64(1)).shape == (2, 1)
    cut = cut_and_normalize(vectors, None, 3)
    assert not np.shares_memory(cut, vectors)
    assert cut.flags.c_contiguous


@pytest.mark.parametrize("normalize", [None, False])
def test_vectors_of_which_nothing_is_asked_are_the_same(normalize):
    vectors = unit_vectors(3)
    assert cut_and_normalize(vectors, normalize, None) is vectors


@pytest.mark.parametrize("dimensions", [0, -1, 385, 10**30])
def test_dimensions_beyond_the_vectors_are_refused(dimensions):
    with pytest.raises(ValueError, match=rf"dimensions is {dimensions}, .*1 to 384 is wanted"):
        cut_and_normalize(unit_vectors(1), True, dimensions)


@pytest.mark.parametrize("dimensions", [2.0, "2", True])
def test_dimensions_that_are_no_whole_number_are_a_type_error(dimensions):
    with pytest.raises(TypeError, match="whole number"):
        cut_and_normalize(unit_vectors(1), None, dimensions)


def test_no_vectors_stay_none():
    none = np.empty((0, 8), np.float32)
    assert cut_and_normalize(none, True, 4).shape == (0, 4)
    assert to_base64(none) == []
    assert to_float16(none).shape == (0, 8)
    assert to_binary(none).bits.shape == (0, 1)
