import numpy as np
import pytest
from bertron_loadtest.answers import AnswerCheck, KnownVectors, WrongAnswerError


@pytest.fixture
def vectors():
    rows = np.random.default_rng(0).standard_normal((3, 16)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_right_answers_pass(vectors):
    check = AnswerCheck(KnownVectors(["a", "b"], vectors[:2]))
    check.check(["b", "x", "a"], vectors[[1, 2, 0]])
    check.check(["b"], vectors[1:2] + 1e-4)


def test_wrong_answers_do_not(vectors):
    check = AnswerCheck(KnownVectors(["a", "b"], vectors[:2]))
    with pytest.raises(WrongAnswerError, match="another vector"):
        check.check(["a", "b"], vectors[[1, 0]])
    with pytest.raises(WrongAnswerError, match=r"shape \(3, 16\), \(2, 16\) is wanted"):
        check.check(["a", "b"], vectors)
    with pytest.raises(WrongAnswerError, match="not of unit length"):
        check.check(["x"], 2 * vectors[:1])
    with pytest.raises(WrongAnswerError, match="not finite"):
        check.check(["x"], np.nan * vectors[:1])


def test_how_near_is_for_the_caller_to_say(vectors):
    near = vectors[:1] + 0.01
    near /= np.linalg.norm(near)
    known = KnownVectors(["a"], vectors[:1])
    AnswerCheck(known, min_cosine=0.99).check(["a"], near)
    with pytest.raises(WrongAnswerError, match="another vector"):
        AnswerCheck(known, min_cosine=0.99999).check(["a"], near)


def test_a_model_that_does_not_normalise_has_no_norm_to_check(vectors):
    check = AnswerCheck(KnownVectors(["a", "b"], 3 * vectors[:2]))
    check.check(["a", "x"], 3 * vectors[[0, 2]] * [[1], [5]])
    with pytest.raises(WrongAnswerError, match="another vector"):
        check.check(["a"], 3 * vectors[1:2])


def test_known_vectors_are_kept_in_a_file(vectors, tmp_path):
    path = tmp_path / "known.npz"
    KnownVectors(["a", "ü b"], vectors[:2]).save(path)
    read = KnownVectors.load(path)
    assert read.texts == ["a", "ü b"]
    np.testing.assert_array_equal(read.vectors, vectors[:2])


@pytest.mark.parametrize(
    "content",
    [
        {"texts": ["a"]},
        {"texts": ["a"], "vectors": np.ones(1)},  # as many as texts, and no vectors
        {"texts": ["a", "b"], "vectors": np.ones((1, 3))},
    ],
)
def test_a_file_of_anything_else_is_refused(content, tmp_path):
    path = tmp_path / "known.npz"
    np.savez(path, **content)
    with pytest.raises(ValueError, match=r"known\.npz"):
        KnownVectors.load(path)
    path.write_text("no archive", encoding="utf-8")
    with pytest.raises(ValueError, match=r"known\.npz"):
        KnownVectors.load(path)
