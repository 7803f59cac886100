"""Texts to tokens: the same ids as transformers, every limit with its words."""

import json

import numpy as np
import pytest
from bertron_backend.batch_tokenizer import BatchTokenizer, TextRequest
from bertron_backend.errors import InvalidInputError
from tiny_checkpoints import make_checkpoint
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers


@pytest.fixture(scope="module", params=["bert", "roberta"])
def path(request, tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("tiny"), request.param) / "tokenizer.json"


@pytest.fixture
def tokenizer(path):
    return BatchTokenizer(
        path,
        max_tokens_per_text=LIMIT,
        max_characters_per_text=1000,
        max_characters_per_request=3000,
    )


LIMIT = 40
TEXTS = ["", "hello world", "the quick brown fox jumps", "日本語 🚀 \x00 \x07", "  \n\t "]


def test_ids_are_those_of_the_library(tokenizer, path):
    (batch,) = tokenizer.encode([TextRequest(TEXTS)])
    library = Tokenizer.from_file(str(path))
    for row, text in enumerate(TEXTS):
        expected = library.encode(text)
        count = int(batch.token_count[row, 0])
        assert batch.input_ids[row, :count].tolist() == expected.ids
        assert batch.attention_mask[row].sum() == count == len(expected.ids)
    assert not batch.truncated.any()
    assert {array.dtype for array in (batch.input_ids, batch.attention_mask)} == {np.dtype("i4")}


def test_pairs_get_the_tokenizers_token_types(tokenizer, path):
    (batch,) = tokenizer.encode([TextRequest(["hello"], ["world"])])
    expected = Tokenizer.from_file(str(path)).encode("hello", "world")
    assert batch.input_ids[0].tolist() == expected.ids
    assert batch.token_type_ids[0].tolist() == expected.type_ids


@pytest.mark.parametrize("mode", ["right", "left"])
def test_a_long_text_is_cut_where_the_request_says(tokenizer, path, mode):
    text = "yes no hello world " * 20
    (batch,) = tokenizer.encode([TextRequest(["hello", text], truncate=mode)])
    assert batch.truncated.ravel().tolist() == [False, True]
    assert batch.token_count[1, 0] == LIMIT
    library = Tokenizer.from_file(str(path))
    library.enable_truncation(LIMIT, direction=mode)
    assert batch.input_ids[1].tolist() == library.encode(text).ids


def test_exactly_the_limit_is_not_truncated(tokenizer):
    word = "yes "
    counts = [
        tokenizer.encode([TextRequest([word * n], truncate="error")])[0] for n in range(1, 60)
    ]
    fitting = [c for c in counts if not isinstance(c, InvalidInputError)]
    assert max(int(c.token_count[0, 0]) for c in fitting) in (LIMIT - 1, LIMIT)
    assert not any(c.truncated.any() for c in fitting)


def test_too_long_a_text_is_named_when_truncation_is_an_error(tokenizer):
    requests = [TextRequest(["ok", "yes no " * 40], truncate="error"), TextRequest(["fine"])]
    refused, answered = tokenizer.encode(requests)
    assert isinstance(refused, InvalidInputError)
    assert str(refused).startswith("text 1 has ")
    assert f"the model takes at most {LIMIT}" in str(refused)
    assert answered.token_count[0, 0] > 1


def test_requests_of_every_mode_share_a_call_and_keep_their_order(tokenizer):
    long = "hello world yes no " * 10
    requests = [
        TextRequest([long, "hello"], truncate="left"),
        TextRequest(["world"]),
        TextRequest([long], truncate="right"),
        TextRequest(["yes"], truncate="error"),
    ]
    together = tokenizer.encode(requests)
    for request, batch in zip(requests, together, strict=True):
        (alone,) = tokenizer.encode([request])
        assert np.array_equal(batch.input_ids, alone.input_ids)
        assert np.array_equal(batch.truncated, alone.truncated)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (TextRequest([]), "the request has 0 texts"),
        (TextRequest(["a"], truncate="middle"), "truncate is 'middle', not one of right, left"),
        (TextRequest(["a", "b"], ["c"]), "TEXT_PAIR has 1 texts, TEXT has 2"),
        (
            TextRequest(["a", "b" * 1001]),
            "text 1 has 1001 characters, the server takes at most 1000",
        ),
        (TextRequest(["a"], ["b" * 1001]), "text pair 0 has 1001 characters"),
        (
            TextRequest(["a" * 600] * 3, ["b" * 600, "b" * 600, "c"]),
            "the request has 3001 characters, the server takes at most 3000 in all its texts "
            "together; send fewer texts a request",
        ),
        (
            TextRequest(['["a"]' + " " * 900] * 4, is_pretokenized=True),
            "the request has 3620 characters",
        ),
        (TextRequest(["a"], truncate="right" * 9999), "truncate is 'rightright"),
    ],
)
def test_a_refused_request_harms_no_other(tokenizer, request_, words):
    refused, answered = tokenizer.encode([request_, TextRequest(["hello"])])
    assert isinstance(refused, InvalidInputError)
    assert words in str(refused)
    assert len(str(refused)) < 200
    assert answered.token_count.shape == (1, 1)


def test_as_many_characters_as_the_request_may_have_are_answered(tokenizer):
    (batch,) = tokenizer.encode([TextRequest(["a" * 1000, "b" * 500], ["c" * 500, "d" * 1000])])
    assert batch.token_count.shape == (2, 1)


AWKWARD = ["", "Hello, wörld", "cafe\u0301s", "日本語 🚀 x", "  [SEP] yes</s>", "no hello " * 30]


@pytest.mark.parametrize("mode", ["right", "left"])
@pytest.mark.parametrize("pairs", [None, AWKWARD[::-1]])
def test_tokens_and_their_places_are_those_of_the_library(tokenizer, path, mode, pairs):
    (batch,) = tokenizer.encode([TextRequest(AWKWARD, pairs, truncate=mode, wants_tokens=True)])
    library = Tokenizer.from_file(str(path))
    library.enable_truncation(LIMIT, direction=mode)
    inputs = AWKWARD if pairs is None else list(zip(AWKWARD, pairs, strict=True))
    for row, expected in enumerate(library.encode_batch(inputs)):
        count = len(expected)
        assert batch.tokens[row, :count].tolist() == [token.encode() for token in expected.tokens]
        assert batch.offsets[row, :count].tolist() == [list(place) for place in expected.offsets]
        assert batch.input_ids[row, :count].tolist() == expected.ids
        assert set(batch.tokens[row, count:]) <= {b""}
        assert not batch.offsets[row, count:].any()
    assert batch.offsets.shape == (*batch.input_ids.shape, 2)
    assert batch.offsets.dtype == np.int32


def test_tokens_are_computed_for_those_who_ask_alone(tokenizer):
    requests = [TextRequest(["yes"]), TextRequest(["yes"], wants_tokens=True)]
    without, with_tokens = tokenizer.encode(requests)
    assert without.tokens is without.offsets is None
    assert with_tokens.tokens is not None
    assert np.array_equal(without.input_ids, with_tokens.input_ids)


def saved(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    return BatchTokenizer(
        path,
        max_tokens_per_text=LIMIT,
        max_characters_per_text=1000,
        max_characters_per_request=3000,
    )


def test_a_token_that_takes_the_blank_before_it_is_spelled_without(tmp_path):
    """RoBERTa's mask: the library's own string of it, ``" <mask>"``, is in no vocabulary."""
    checkpoint = make_checkpoint(tmp_path / "tiny", "roberta")
    library = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    library.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    tokenizer = saved(library, tmp_path)
    (batch,) = tokenizer.encode([TextRequest(["0 <mask> 1"], wants_tokens=True)])
    expected = library.encode("0 <mask> 1")
    assert " <mask>" in expected.tokens
    assert [token for token in batch.tokens[0].tolist() if b"mask" in token] == [b"<mask>"]
    assert [tuple(place) for place in batch.offsets[0].tolist()] == expected.offsets
    tokens = [token.decode() for token in batch.tokens[0, 1:-1]]
    (again,) = tokenizer.encode([TextRequest([json.dumps(tokens)], is_pretokenized=True)])
    assert again.input_ids.tolist() == batch.input_ids.tolist()


def test_an_unknown_piece_is_spelled_as_the_unknown_token(tmp_path):
    """XLM-R's Unigram has the piece itself for it."""
    library = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0, False))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    (batch,) = saved(library, tmp_path).encode([TextRequest(["a 日 a"], wants_tokens=True)])
    assert batch.tokens.tolist() == [[b"a", b"<unk>", b"a"]]
    assert batch.offsets.tolist() == [[[0, 1], [2, 3], [4, 5]]]
