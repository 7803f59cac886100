"""The tokenizer.json that is exported: which, and that it reads texts as transformers does."""

import json
from pathlib import Path

import pytest
import transformers
from bertron_torchscript.checkpoint import read_checkpoint
from bertron_torchscript.errors import ExportError
from bertron_torchscript.tokenizer_file import write_tokenizer
from bertron_torchscript.verification import load_tokenizer
from tiny_checkpoints import ARCHITECTURES, CORPUS, make_checkpoint
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers


def configure(directory: Path, **fields: object) -> None:
    (directory / "tokenizer_config.json").write_text(json.dumps(fields))


def add_token(directory: Path, token_id: int, content: str) -> None:
    path = directory / "tokenizer.json"
    raw = json.loads(path.read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    raw["added_tokens"].append({"id": token_id, "content": content, **flags})
    path.write_text(json.dumps(raw))


def written(directory: Path, tokenizer: str | None = None) -> tuple[Path, list[str]]:
    """The file that was written for ``directory``, and what was said."""
    target = directory / "exported.json"
    target.unlink(missing_ok=True)
    said: list[str] = []
    checkpoint = read_checkpoint(str(directory), tokenizer=tokenizer)
    exported = write_tokenizer(checkpoint, target, said.append)
    assert exported.tokenizer_file == target
    return target, said


def write_unigram(directory: Path, tokenizer_class: str, normalizer: object = None) -> None:
    """A tokenizer as XLM-RoBERTa's and CamemBERT's, with another normalizer where one is given."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=90,
        special_tokens=special,
        unk_token="<unk>",  # noqa: S106
        show_progress=False,
    )
    tokenizer.train_from_iterator([*CORPUS, "fine ﬁne"], trainer)
    tokenizer.add_special_tokens(["<mask>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    raw = json.loads(tokenizer.to_str())
    raw["added_tokens"][-1]["lstrip"] = True  # of <mask>, as both classes have it
    raw["normalizer"] = normalizer
    (directory / "tokenizer.json").write_text(json.dumps(raw))
    configure(directory, tokenizer_class=tokenizer_class)


@pytest.fixture
def directory(tmp_path):
    return make_checkpoint(tmp_path / "tiny")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tokenizer", [None, "file", "transformers"])
def test_every_architectures_tokenizer_is_exported(tmp_path, architecture, tokenizer):
    directory = make_checkpoint(tmp_path / "tiny", architecture)
    target, said = written(directory, tokenizer)
    if tokenizer != "transformers":
        assert target.read_bytes() == (directory / "tokenizer.json").read_bytes()
    ours = load_tokenizer(directory / "tokenizer.json").encode("the quick brown fox").ids
    assert load_tokenizer(target).encode("the quick brown fox").ids == ours
    assert said == []


@pytest.mark.parametrize("tokenizer_class", ["XLMRobertaTokenizer", "CamembertTokenizer"])
def test_transformers_drops_a_normalizer_that_its_class_does_not_have(tmp_path, tokenizer_class):
    directory = make_checkpoint(tmp_path / "tiny", "xlm-roberta")
    write_unigram(directory, tokenizer_class)
    assert written(directory)[1] == []
    write_unigram(directory, tokenizer_class, {"type": "NFKC"})
    with pytest.raises(ExportError, match="disagree on 'ﬁne ½ Ａ①': token 1 is "):
        written(directory)
    target, _ = written(directory, "transformers")
    assert json.loads(target.read_text())["normalizer"] is None
    assert json.loads(written(directory, "file")[0].read_text())["normalizer"] == {"type": "NFKC"}


DISAGREEMENTS = [
    ({"do_lower_case": False}, "'Yes\\.': token 1 is 'yes' "),
    ({"strip_accents": False}, "'Der Zug nach M"),
    (
        {"cls_token": "[MASK]"},
        "'': token 0 is '\\[CLS\\]' \\(2\\) in the one, '\\[MASK\\]' \\(4\\)",
    ),
    (
        {
            "added_tokens_decoder": {
                "119": {"content": "quick fox", "special": False, "normalized": False}
            }
        },
        "'a quick fox b': token 2 is .* in the one, 'quick fox' \\(119\\) in the other",
    ),
]


@pytest.mark.parametrize(("config", "words"), DISAGREEMENTS)
def test_a_file_that_reads_otherwise_than_transformers_is_refused(directory, config, words):
    configure(directory, **config)
    with pytest.raises(
        ExportError,
        match=r"tiny: tokenizer\.json and what transformers makes of tokenizer_config\.json "
        rf"beside it disagree on {words}",
    ) as refused:
        written(directory)
    assert "--tokenizer file serves tokenizer.json as it is" in str(refused.value)
    assert "--tokenizer transformers what AutoTokenizer makes" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("config", "words"), DISAGREEMENTS)
def test_the_user_chooses_between_the_two(directory, config, words):
    configure(directory, **config)
    target, said = written(directory, "file")
    assert target.read_bytes() == (directory / "tokenizer.json").read_bytes()
    target, said = written(directory, "transformers")
    made = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
    for text in ("", "The quick fox", "München"):
        assert load_tokenizer(target).encode(text).ids == made(text)["input_ids"], (said, words)


def test_a_token_that_only_the_file_adds_is_compared_too(directory):
    configure(directory, do_lower_case=True)
    raw = json.loads((directory / "tokenizer.json").read_text())
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] != "[MASK]"]
    (directory / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(ExportError, match=r"disagree on 'a \[SEP\] b \[MASK\] c"):
        written(directory)


def test_a_vocabulary_alone_is_enough_for_transformers(directory):
    vocabulary = json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"]
    expected = load_tokenizer(directory / "tokenizer.json").encode("the quick fox").ids
    lines = sorted(vocabulary, key=vocabulary.__getitem__)
    (directory / "vocab.txt").write_text("\n".join(lines) + "\n")
    (directory / "tokenizer.json").unlink()
    configure(directory, tokenizer_class="BertTokenizer")
    for tokenizer in (None, "file"):
        with pytest.raises(
            ExportError, match=r"tokenizer\.json is missing: --tokenizer transformers"
        ):
            written(directory, tokenizer)
    target, _ = written(directory, "transformers")
    assert load_tokenizer(target).encode("the quick fox").ids == expected
    sources = read_checkpoint(str(directory), tokenizer="transformers").source_files
    assert {path.name for path in sources} == {
        "config.json",
        "vocab.txt",
        "tokenizer_config.json",
        "model.safetensors",
    }


def test_what_no_tokenizer_json_can_say_is_refused_either_way(directory):
    configure(directory, split_special_tokens=True)
    with pytest.raises(ExportError, match=r"disagree on 'a \[SEP\] b"):
        written(directory)
    with pytest.raises(
        ExportError, match=r"reads 'a \[SEP\] b .* otherwise once it is saved.*--tokenizer file"
    ):
        written(directory, "transformers")
    written(directory, "file")


def test_a_tokenizer_that_transformers_cannot_make_is_named(directory):
    configure(directory, tokenizer_class="XLMRobertaTokenizer")
    with pytest.raises(
        ExportError, match=r"transformers makes no tokenizer of it: .*--tokenizer file serves"
    ):
        written(directory)
    written(directory, "file")


def test_an_import_error_of_transformers_is_an_export_error(directory, monkeypatch):
    def fails(*_arguments, **_options):
        raise ImportError("this tokenizer needs a package\nof another kind")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fails)
    with pytest.raises(ExportError, match=r"of it: this tokenizer needs a package; --tokenizer f"):
        written(directory)


def test_a_tokenizer_that_fails_on_a_text_is_an_export_error(directory, monkeypatch):
    def fails(*_arguments, **_options):
        raise KeyError("[UNK]")

    monkeypatch.setattr(transformers.BertTokenizer, "__call__", fails)
    with pytest.raises(ExportError, match=r"cannot read the texts of the comparison: '\[UNK\]'$"):
        written(directory)


def test_a_tokenizer_in_python_has_no_file_to_export(directory, monkeypatch):
    monkeypatch.setattr(
        transformers.AutoTokenizer, "from_pretrained", lambda *_arguments, **_options: object()
    )
    with pytest.raises(ExportError, match=r"object has no tokenizer\.json: it is written in Pyth"):
        written(directory, "transformers")


def test_texts_that_transformers_would_cut_at_the_left_are_told(directory):
    configure(directory, truncation_side="left")
    with pytest.raises(
        ExportError,
        match=r"tokenizer_config\.json: truncation_side is left; the server cuts the right end .*"
        "unless the request says truncate left; --tokenizer file .*exports it nevertheless",
    ):
        written(directory)
    assert written(directory, "file")[1] == []
    (told,) = written(directory, "transformers")[1]
    assert "truncation_side is left" in told


def test_other_token_types_of_a_pair_are_told(directory):
    configure(directory, tokenizer_class="DistilBertTokenizer")
    assert written(directory)[1] == [
        "pairs: the server gives their tokens the types 0 and 1, transformers gives none, "
        "so their vectors differ"
    ]


def test_a_model_without_token_types_has_no_such_difference(tmp_path):
    directory = make_checkpoint(tmp_path / "tiny", "distilbert")
    configure(directory, tokenizer_class="DistilBertTokenizer")
    assert written(directory)[1] == []


@pytest.mark.parametrize("tokenizer", [None, "file", "transformers"])
def test_tokens_beyond_the_models_vocabulary_are_told(directory, tmp_path, tokenizer):
    size = load_tokenizer(directory / "tokenizer.json").get_vocab_size()
    small = make_checkpoint(tmp_path / "small", vocab_size=size)
    assert written(small, tokenizer)[1] == []
    add_token(small, size, "<extra>")
    configure(small, added_tokens_decoder={str(size): {"content": "<extra>", "normalized": False}})
    assert written(small, tokenizer)[1] == [
        f"the tokenizer's largest token is {size}, the model's vocabulary has {size}: "
        "the server refuses texts with tokens beyond it"
    ]


def test_texts_that_are_to_be_lower_cased_are_refused_where_the_tokenizer_keeps_capitals(directory):
    path = directory / "sentence_bert_config.json"
    path.write_text(json.dumps({"do_lower_case": True}))
    written(directory)  # BERT's own normalizer does so already
    configure(directory, do_lower_case=False)
    for tokenizer in ("transformers", "file"):
        if tokenizer == "file":
            raw = json.loads((directory / "tokenizer.json").read_text())
            (directory / "tokenizer.json").write_text(json.dumps({**raw, "normalizer": None}))
        with pytest.raises(
            ExportError,
            match=r"sentence_bert_config\.json: do_lower_case is true, but .* keeps capitals",
        ):
            written(directory, tokenizer)


def test_a_choice_that_is_none_is_refused(directory):
    with pytest.raises(ExportError, match="tokenizer 'slow' is not known; choose one of file, tra"):
        read_checkpoint(str(directory), tokenizer="slow")
