import itertools
from collections import Counter

import numpy as np
import pytest
from bertron_loadtest.workload import (
    SAMPLE_TEXTS,
    AnswerCheck,
    Workload,
    WrongAnswerError,
    parse_batch_sizes,
    read_texts,
)


def first(workload, user, count=200):
    return list(itertools.islice(workload.batches(user), count))


def test_the_sample_has_texts_of_varied_lengths():
    texts = read_texts(SAMPLE_TEXTS)
    words = [len(text.split()) for text in texts]
    assert len(set(texts)) == len(texts) == 300
    assert 3 <= min(words) <= 4
    assert 50 <= max(words) <= 60


def test_the_same_seed_gives_the_same_requests_and_each_user_its_own():
    texts = read_texts(SAMPLE_TEXTS)
    workload = Workload(texts, [1, 8, 32], seed=5)
    assert first(workload, 0) == first(Workload(texts, [1, 8, 32], seed=5), 0)
    assert first(workload, 0) != first(workload, 1)
    assert first(workload, 0) != first(Workload(texts, [1, 8, 32], seed=6), 0)


def test_requests_have_the_sizes_asked_for_and_often_a_known_text():
    workload = Workload(read_texts(SAMPLE_TEXTS), [1, 8], seed=0)
    batches = first(workload, 3)
    sizes = Counter(len(batch) for batch in batches)
    assert sizes.keys() == {1, 8}
    assert min(sizes.values()) > 60
    known = set(workload.known_texts)
    assert len(known) == 8
    assert sum(bool(known & set(batch)) for batch in batches) > 80


def test_a_users_file(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("one\n\n  \ntwo\n", encoding="utf-8")
    assert read_texts(path) == ["one", "two"]
    assert Workload(read_texts(path), [1], 0).known_texts in (["one", "two"], ["two", "one"])
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(ValueError, match="has no line with text"):
        read_texts(path)


@pytest.mark.parametrize("sizes", ["", "0", "1,x", "-1", "1,,2"])
def test_wrong_batch_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="numbers from 1 with commas"):
        parse_batch_sizes(sizes)


@pytest.fixture
def vectors():
    rows = np.random.default_rng(0).standard_normal((3, 16)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_right_answers_pass(vectors):
    check = AnswerCheck(["a", "b"], vectors[:2])
    check.check(["b", "x", "a"], vectors[[1, 2, 0]])
    check.check(["b"], vectors[1:2] + 1e-4)


def test_wrong_answers_do_not(vectors):
    check = AnswerCheck(["a", "b"], vectors[:2])
    with pytest.raises(WrongAnswerError, match="another vector"):
        check.check(["a", "b"], vectors[[1, 0]])
    with pytest.raises(WrongAnswerError, match=r"shape \(3, 16\), \(2, 16\) is wanted"):
        check.check(["a", "b"], vectors)
    with pytest.raises(WrongAnswerError, match="not of unit length"):
        check.check(["x"], 2 * vectors[:1])
    with pytest.raises(WrongAnswerError, match="not finite"):
        check.check(["x"], np.nan * vectors[:1])


def test_a_model_that_does_not_normalise_has_no_norm_to_check(vectors):
    check = AnswerCheck(["a", "b"], 3 * vectors[:2])
    check.check(["a", "x"], 3 * vectors[[0, 2]] * [[1], [5]])
    with pytest.raises(WrongAnswerError, match="another vector"):
        check.check(["a"], 3 * vectors[1:2])
