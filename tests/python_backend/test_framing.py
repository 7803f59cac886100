"""Long texts and pairs: what is kept of them is what the library keeps, at the cost of reading."""

import json
import time

import pytest
from bertron_backend.batch_tokenizer import BatchTokenizer, TextRequest
from bertron_backend.framing import Frame
from bertron_backend.pretokenized import TokenList
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_checkpoints import CORPUS, make_checkpoint
from tokenizers import Tokenizer, models, processors

BERT = processors.BertProcessing(("</s>", 2), ("<s>", 0))
TEMPLATE = processors.TemplateProcessing(
    single="<s> $A </s>",
    pair="<s> $A </s> $B:1 </s>:1",
    special_tokens=[("<s>", 0), ("</s>", 2)],
)
PROCESSORS = {
    "none": None,
    "BERT": BERT,
    "template": TEMPLATE,
    # It takes the blank from a token's place, but for the first one's: on the left that moves.
    "RoBERTa": processors.RobertaProcessing(("</s>", 2), ("<s>", 0)),
    "RoBERTa, blanks kept": processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=False, add_prefix_space=False
    ),
    "byte level": processors.Sequence([processors.ByteLevel(trim_offsets=True), TEMPLATE]),
    "second half first": processors.TemplateProcessing(
        single="$A </s>", pair="<s> $B:1 </s>:1 </s> $A", special_tokens=[("<s>", 0), ("</s>", 2)]
    ),
}
LIMITS = (8, 9, 15, 32)  # with an even and with an odd number of tokens for the texts
WORDS = sorted(set(" ".join(CORPUS).split()))
# Shorter than any limit, about as long, and far longer.
COUNTS = st.sampled_from([*range(20), 26, 27, 28, 29, 30, 31, 32, 33, 50])
TEXTS = COUNTS.flatmap(lambda n: st.lists(st.sampled_from(WORDS), min_size=n, max_size=n))
PAIRS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6)


@pytest.fixture(scope="module", params=PROCESSORS.values(), ids=PROCESSORS.keys())
def library(request, tmp_path_factory):
    path = make_checkpoint(tmp_path_factory.mktemp("tiny"), "roberta") / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.post_processor = request.param
    return tokenizer


@pytest.fixture(scope="module")
def tokenizers(library, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "tokenizer.json"
    library.save(str(path))
    return {limit: batch_tokenizer(path, limit) for limit in LIMITS}


def batch_tokenizer(path, limit):
    return BatchTokenizer(
        path,
        max_tokens_per_text=limit,
        max_characters_per_text=100_000,
        max_characters_per_request=200_000,
    )


def rows(batch):
    """What is answered for each text, without the padding."""
    counts = batch.token_count.ravel().tolist()
    return [
        {
            "ids": batch.input_ids[row, :count].tolist(),
            "type_ids": batch.token_type_ids[row, :count].tolist(),
            "tokens": [token.decode() for token in batch.tokens[row, :count]],
            "offsets": [tuple(place) for place in batch.offsets[row, :count].tolist()],
            "truncated": bool(batch.truncated[row, 0]),
        }
        for row, count in enumerate(counts)
    ]


def rows_of(encodings):
    return [
        {
            "ids": encoding.ids,
            "type_ids": encoding.type_ids,
            "tokens": encoding.tokens,
            "offsets": encoding.offsets,
            "truncated": bool(encoding.overflowing),
        }
        for encoding in encodings
    ]


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("side", ["right", "left"])
@settings(max_examples=6, deadline=None)
@given(pairs=PAIRS, blanks=st.sampled_from([" ", "  "]))
def test_texts_are_cut_as_by_the_library(tokenizers, library, limit, side, pairs, blanks):
    texts, second = ([blanks.join(words) for words in half] for half in zip(*pairs, strict=True))
    tokenizer = tokenizers[limit]
    options = {"truncate": side, "wants_tokens": True}
    alone, together = tokenizer.encode(
        [TextRequest(texts, **options), TextRequest(texts, second, **options)]
    )
    library.enable_truncation(limit, direction=side)
    assert rows(alone) == rows_of(library.encode_batch(texts))
    assert rows(together) == rows_of(library.encode_batch(list(zip(texts, second, strict=True))))


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("side", ["right", "left"])
@settings(max_examples=6, deadline=None)
@given(pairs=PAIRS)
def test_lists_of_tokens_are_cut_as_by_the_library(tokenizers, library, limit, side, pairs):
    vocabulary = models.WordLevel(library.get_vocab(), unk_token="<unk>")  # noqa: S106
    reference = Tokenizer(vocabulary)  # each word a token, as it stands
    reference.post_processor = library.post_processor
    reference.enable_truncation(limit, direction=side)
    texts, second = ([json.dumps(words) for words in half] for half in zip(*pairs, strict=True))
    options = {"truncate": side, "wants_tokens": True, "is_pretokenized": True}
    alone, together = tokenizers[limit].encode(
        [TextRequest(texts, **options), TextRequest(texts, second, **options)]
    )
    first = [words for words, _ in pairs]
    assert rows(alone) == rows_of(reference.encode_batch(first, is_pretokenized=True))
    assert rows(together) == rows_of(reference.encode_batch(pairs, is_pretokenized=True))


def test_a_pair_is_counted_whole_when_it_is_refused(tokenizers, library):
    texts = ["[]", json.dumps(["no"] * 20)]
    options = {"truncate": "error", "is_pretokenized": True}
    refused, answered = tokenizers[15].encode(
        [TextRequest(texts, texts, **options), TextRequest(texts[:1], texts[:1], **options)]
    )
    count = 40 + library.num_special_tokens_to_add(is_pair=True)
    assert str(refused).startswith(f"text 1 has {count} tokens, the model takes at most 15; ")
    assert answered.token_count.tolist() == [[count - 40]]


@pytest.mark.parametrize(
    ("limit", "ids"), [(1, [0, 2, 2]), (3, [0, 2, 2]), (4, [0, 2, 7, 2]), (5, [0, 5, 2, 7, 2])]
)
def test_special_tokens_are_never_cut(limit, ids):
    tokenizer = Tokenizer(models.WordLevel({"no": 0}))
    tokenizer.post_processor = BERT
    frame = Frame(tokenizer, halves=2, max_tokens=limit)
    halves = [TokenList([5, 6], [1, 1]), TokenList([7, 8], [1, 1])]
    assert frame.count(halves) == 7
    assert frame.tokens(halves, "right")[0] == ids


def cpu_seconds(call):
    began = time.process_time()
    call()
    return time.process_time() - began


@pytest.mark.parametrize("wants_tokens", [False, True])
@pytest.mark.parametrize("is_pretokenized", [False, True])
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_long_pair_costs_what_its_texts_cost(tokenizers, side, is_pretokenized, wants_tokens):
    """The library's own cut makes 1,700 x 1,700 parts of these, in minutes and gigabytes."""
    words = ["no"] * 5000
    text = json.dumps(words) if is_pretokenized else " ".join(words)
    options = {
        "truncate": side,
        "is_pretokenized": is_pretokenized,
        "wants_tokens": wants_tokens,
    }
    tokenizer = tokenizers[8]
    apart = cpu_seconds(lambda: tokenizer.encode([TextRequest([text, text], **options)]))
    together = cpu_seconds(lambda: tokenizer.encode([TextRequest([text], [text], **options)]))
    assert together < 10 * apart + 0.1  # s; 0.1 for a busy machine
