import itertools
import statistics
from collections import Counter

import pytest
from bertron_loadtest.workload import (
    ONE_TOKEN_WORDS,
    SAMPLE_TEXTS,
    WORKLOADS,
    make_workload,
    read_texts,
)
from real_server import MODEL_REPOSITORY


def first(workload, user="0", count=200):
    return list(itertools.islice(workload.calls(user), count))


def words(workload):
    return [len(text.split()) for text in workload.texts]


def test_the_sample_has_texts_of_varied_lengths():
    texts = read_texts(SAMPLE_TEXTS)
    lengths = [len(text.split()) for text in texts]
    assert len(set(texts)) == len(texts) == 300
    assert 3 <= min(lengths) <= 4
    assert 50 <= max(lengths) <= 60


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_same_seed_gives_the_same_calls_and_each_user_its_own(name):
    sizes = [1, 3]
    workload = make_workload(name, seed=5, texts_a_call=sizes)
    assert first(workload) == first(make_workload(name, seed=5, texts_a_call=sizes))
    assert first(workload) != first(workload, "1")
    assert first(workload) != first(make_workload(name, seed=6, texts_a_call=sizes))


def test_short_texts_go_one_a_call_and_half_the_calls_have_a_known_one():
    workload = make_workload("short")
    calls = first(workload, count=1000)
    assert {len(call) for call in calls} == {1}
    known = set(workload.known_texts)
    assert len(known) == 8
    assert 450 < sum(bool(known & set(call)) for call in calls) < 650


def test_documents_have_hundreds_of_words():
    lengths = words(make_workload("documents"))
    assert min(lengths) >= 120
    assert max(lengths) <= 400
    assert 230 < statistics.mean(lengths) < 290


def test_the_mix_has_a_long_tail():
    lengths = words(make_workload("mixed"))
    assert 16 < statistics.median(lengths) < 25
    assert 150 < max(lengths) <= 400
    assert statistics.mean(lengths) > 1.4 * statistics.median(lengths)


def test_bulk_calls_have_many_texts():
    sizes = Counter(len(call) for call in first(make_workload("bulk")))
    assert sizes.keys() == {32, 64, 128, 256}
    assert min(sizes.values()) > 30


@pytest.mark.parametrize("tokens", [3, 40, 200])
def test_the_texts_of_bert_as_services_matrix_have_so_many_tokens(tokens):
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(
        str(MODEL_REPOSITORY / "tokenizer" / "1" / "tokenizer.json")
    )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    workload = make_workload("bert-as-service", tokens=tokens)
    assert {len(encoding) for encoding in tokenizer.encode_batch(workload.texts)} == {tokens}
    assert workload.texts_a_call == (2048,)


def test_each_word_of_equal_texts_is_there_once():
    found = read_texts(ONE_TOKEN_WORDS)
    assert len(found) == len(set(found)) > 400


def test_sizes_are_the_callers_to_choose():
    sizes = Counter(len(call) for call in first(make_workload("mixed", texts_a_call=[2, 5])))
    assert sizes.keys() == {2, 5}


def test_a_users_file(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("one\n\n  \ntwo\n", encoding="utf-8")
    workload = make_workload("short", sample=path)
    assert sorted(workload.texts) == ["one", "two"]
    assert sorted(workload.known_texts) == ["one", "two"]
    assert set(" ".join(make_workload("documents", sample=path).texts).split()) == {"one", "two"}
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(ValueError, match="has no line with text"):
        make_workload("short", sample=path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "long"}, "workload is 'long', one of short, "),
        ({"name": "short", "texts_a_call": [1, 0]}, "numbers from 1 on"),
        ({"name": "bert-as-service", "tokens": 2}, "are 2, more than 2 are wanted"),
    ],
)
def test_what_makes_no_workload_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        make_workload(**arguments)
