"""Texts that come as tokens: the ids that the vocabulary has for them, or what is wrong."""

import json

import numpy as np
import pytest
from bertron_backend.batch_tokenizer import BatchTokenizer, TextRequest
from bertron_backend.errors import InvalidInputError
from tiny_checkpoints import make_checkpoint
from tokenizers import Tokenizer, models, pre_tokenizers

LIMIT = 40
TEXTS = ["", "hello world", "The quick brown fox, 21!", "yes no hello world 0 1 2 3 " * 9]
PAIRS = ["no", "", "jumps over the lazy dog " * 4, "SELECT name FROM users " * 9]
UNKNOWN = {"bert": "[UNK]", "roberta": "<unk>"}
NONE = "<<none>>"
MASK = {"bert": "[MASK]", "roberta": "<mask>"}


@pytest.fixture(scope="module", params=["bert", "roberta"])
def architecture(request):
    return request.param


@pytest.fixture(scope="module")
def path(architecture, tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("tiny"), architecture) / "tokenizer.json"


@pytest.fixture(scope="module")
def library(path):
    return Tokenizer.from_file(str(path))


def batch_tokenizer(path):
    return BatchTokenizer(
        path,
        max_tokens_per_text=LIMIT,
        max_characters_per_text=3000,
        max_characters_per_request=9000,
    )


@pytest.fixture
def tokenizer(path):
    return batch_tokenizer(path)


def tokens_request(*token_lists, pairs=None, **options):
    return TextRequest(
        [json.dumps(tokens) for tokens in token_lists],
        None if pairs is None else [json.dumps(tokens) for tokens in pairs],
        is_pretokenized=True,
        **options,
    )


def assert_same_tokens(found, expected):
    for name in ("input_ids", "attention_mask", "token_type_ids", "token_count", "truncated"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    for name in ("input_ids", "attention_mask", "token_type_ids", "token_count"):
        assert getattr(found, name).dtype == np.int32, name


@pytest.mark.parametrize("truncate", ["right", "left"])
@pytest.mark.parametrize("with_pairs", [False, True])
def test_a_texts_own_tokens_give_the_texts_ids(tokenizer, library, truncate, with_pairs):
    """Every shape is the same: special tokens, types, and where a long text or pair is cut."""
    split = [library.encode(text, add_special_tokens=False).tokens for text in TEXTS]
    split_pairs = [library.encode(text, add_special_tokens=False).tokens for text in PAIRS]
    expected, found = tokenizer.encode(
        [
            TextRequest(TEXTS, PAIRS if with_pairs else None, truncate=truncate),
            tokens_request(*split, pairs=split_pairs if with_pairs else None, truncate=truncate),
        ]
    )
    assert_same_tokens(found, expected)
    assert found.truncated.any()


def test_a_token_is_not_split_lowered_or_stripped(tokenizer, library, architecture):
    unknown = library.token_to_id(UNKNOWN[architecture])
    request = tokens_request(["hello world", " x", "HELLO", "", "\x00", "日本"], wants_tokens=True)
    (batch,) = tokenizer.encode([request])
    assert batch.input_ids[0, 1:-1].tolist() == [unknown] * 6
    assert batch.tokens[0, 1:-1].tolist() == [UNKNOWN[architecture].encode()] * 6
    assert batch.offsets[0, 1:-1].tolist() == [[0, n] for n in (11, 2, 5, 0, 1, 2)]


def test_special_tokens_that_are_spelled_out_are_themselves(tokenizer, library, architecture):
    mask = MASK[architecture]
    (batch,) = tokenizer.encode([tokens_request(["0", mask, "1"], wants_tokens=True)])
    expected = [library.token_to_id(token) for token in ("0", mask, "1")]
    assert None not in expected
    assert batch.input_ids[0, 1:-1].tolist() == expected
    assert batch.tokens[0, 2] == mask.encode()


def test_no_tokens_are_those_of_an_empty_text(tokenizer):
    expected, found = tokenizer.encode([TextRequest([""]), tokens_request([])])
    assert_same_tokens(found, expected)
    pair, found_pair = tokenizer.encode([TextRequest([""], [""]), tokens_request([], pairs=[[]])])
    assert_same_tokens(found_pair, pair)


def test_too_many_tokens_are_named_when_truncation_is_an_error(tokenizer):
    (refused,) = tokenizer.encode([tokens_request([], ["0"] * LIMIT, truncate="error")])
    assert isinstance(refused, InvalidInputError)
    assert str(refused).startswith(
        f"text 1 has {LIMIT + 2} tokens, the model takes at most {LIMIT}"
    )
    (answered,) = tokenizer.encode([tokens_request(["0"] * (LIMIT - 2), truncate="error")])
    assert answered.token_count.tolist() == [[LIMIT]]


def request_of(text, pair=None):
    pairs = None if pair is None else ["[]", pair]
    return TextRequest(["[]", text], pairs, is_pretokenized=True)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (request_of("hello world"), "text 1 is not a JSON array of strings, as is_pretokenized"),
        (request_of(""), "it is ''"),
        (request_of('{"a": 1}'), "it is '{\"a\": 1}'"),
        (request_of('"a"'), "it is '\"a\"'"),
        (request_of("null"), "it is 'null'"),
        (request_of('["a"'), "it is '[\"a\"'"),
        (request_of("[" * 2900), "it is '[[[[[[[[[[[[...[[[[[[[[[[[[['"),
        (request_of('["a", 5]'), "element 1 is 5"),
        (request_of('["a", "b", null]'), "element 2 is None"),
        (request_of('[["a"]]'), "element 0 is ['a']"),
        (request_of("[" * 900 + "]" * 900), "element 0 is [[...]]"),
        (request_of('["\\ud800"]'), "text 1: token 0, '\\ud800', has a lone surrogate"),
        (request_of("[]", "x"), "text pair 1 is not a JSON array of strings"),
        (request_of('["' + "a" * 3000 + '"]'), "text 1 has 3004 characters, the server takes at"),
    ],
)
def test_what_is_no_list_of_tokens_is_refused_alone(tokenizer, request_, words):
    refused, answered = tokenizer.encode([request_, tokens_request(["0"])])
    assert isinstance(refused, InvalidInputError)
    assert words in str(refused)
    assert len(str(refused)) < 200
    assert answered.token_count.shape == (1, 1)


def saved(tmp_path, model):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return batch_tokenizer(tmp_path / "tokenizer.json")


def test_a_vocabulary_without_an_unknown_token_refuses_the_token(tmp_path):
    tokenizer = saved(tmp_path, models.BPE({"a": 0, "b": 1}, []))
    refused, answered = tokenizer.encode([tokens_request(["a"], ["b", "c"]), tokens_request(["b"])])
    assert str(refused) == (
        "text 1: token 1, 'c', is not in the vocabulary, which has no unknown token"
    )
    assert answered.input_ids.tolist() == [[1]]


@pytest.mark.parametrize(
    "model",
    [
        models.WordPiece({"a": 0, NONE: 1}, unk_token=NONE),
        models.WordLevel({"a": 0, NONE: 1}, unk_token=NONE),
        models.BPE({"a": 0, NONE: 1}, [], unk_token=NONE),
        models.BPE({"a": 0, "<unk>": 1}, []),
        models.Unigram([("a", -1.0), ("<unk>", 0.0)], 1, False),
    ],
    ids=["WordPiece", "WordLevel", "BPE", "BPE that names none", "Unigram"],
)
def test_every_kind_of_model_has_its_unknown_token(tmp_path, model):
    (batch,) = saved(tmp_path, model).encode([tokens_request(["a", "zzz"])])
    assert batch.input_ids.tolist() == [[0, 1]]
