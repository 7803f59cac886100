import pickle

import numpy as np
import pytest
from bertron_client import Embeddings, InvalidInputError


@pytest.fixture
def embeddings():
    vectors = np.arange(6, dtype=np.float32).reshape(3, 2)
    return Embeddings(vectors, np.arange(3, dtype=np.int32), np.zeros(3, np.bool_))


def test_it_is_an_array_to_numpy(embeddings):
    assert np.asarray(embeddings) is embeddings.vectors
    assert np.array(embeddings) is not embeddings.vectors
    assert np.asarray(embeddings, dtype=np.float64).dtype == np.float64
    np.testing.assert_array_equal(embeddings @ np.ones(2), [1, 5, 9])
    np.testing.assert_array_equal(np.vstack([embeddings, embeddings]).shape, (6, 2))


def test_the_copy_argument_of_numpy_2(embeddings):
    assert embeddings.__array__(copy=False) is embeddings.vectors
    assert embeddings.__array__(copy=True) is not embeddings.vectors
    with pytest.raises(ValueError, match="a copy is needed"):
        embeddings.__array__(np.float64, copy=False)


def test_it_has_rows(embeddings):
    assert (len(embeddings), embeddings.shape, embeddings.dtype) == (3, (3, 2), np.float32)
    np.testing.assert_array_equal(embeddings[-1], [4, 5])
    np.testing.assert_array_equal(embeddings[:2], [[0, 1], [2, 3]])
    assert [list(row) for row in embeddings] == [[0, 1], [2, 3], [4, 5]]


def test_errors_survive_a_pickle():
    error = pickle.loads(pickle.dumps(InvalidInputError("text 3 is bad", index=3)))  # noqa: S301
    assert (str(error), error.index) == ("text 3 is bad", 3)
