"""Random checkpoints of two layers, made in milliseconds, in every architecture we export."""

import json
from pathlib import Path

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "yes no hello world 0 1 2 3 4 5 6 7 8 9",
    "SELECT name FROM users WHERE age = 21;",
]
ARCHITECTURES = ("bert", "roberta", "xlm-roberta", "distilbert")

# Odd on purpose: three heads of 16 in 48, so that no size equals another.
_SIZES = {"vocab_size": 400, "max_position_embeddings": 66}
_HIDDEN = {
    "hidden_size": 48,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "intermediate_size": 80,
}


def make_checkpoint(
    directory: Path, architecture: str = "bert", *, pooling: str | None = "mean", **config: object
) -> Path:
    """Write a checkpoint into ``directory`` and return it.

    Args:
        directory: Made when missing.
        architecture: One of ARCHITECTURES.
        pooling: What modules.json says; None writes no modules.json.
        config: Fields of the Hugging Face configuration to override.
    """
    torch.manual_seed(0)
    directory.mkdir(parents=True, exist_ok=True)
    model = _model(architecture, config)
    # Freshly made models have zero biases and unit norms, which would hide a bias that is lost.
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.eval().save_pretrained(directory, safe_serialization=True)
    _wordpiece(directory) if "roberta" not in architecture else _byte_level(directory)
    if architecture == "xlm-roberta":  # transformers expects a Unigram model of it
        tokenizer_class = {"tokenizer_class": "PreTrainedTokenizerFast"}
        (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer_class))
    if pooling is not None:
        _sentence_transformers(directory, pooling)
    return directory


def _model(architecture: str, config: dict[str, object]) -> PreTrainedModel:
    if architecture == "bert":
        return BertModel(BertConfig(**{**_SIZES, **_HIDDEN, **config}))
    if architecture == "roberta":
        return RobertaModel(RobertaConfig(**{**_SIZES, **_HIDDEN, "type_vocab_size": 1, **config}))
    if architecture == "xlm-roberta":
        sizes = {**_SIZES, **_HIDDEN, "type_vocab_size": 1}
        return XLMRobertaModel(XLMRobertaConfig(**{**sizes, **config}))
    sizes = {"dim": 48, "n_heads": 3, "n_layers": 2, "hidden_dim": 80}
    configuration: PretrainedConfig = DistilBertConfig(**{**_SIZES, **sizes, **config})
    return DistilBertModel(configuration)


def _wordpiece(directory: Path) -> None:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.save(str(directory / "tokenizer.json"))


def _byte_level(directory: Path) -> None:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=390,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.save(str(directory / "tokenizer.json"))


def _sentence_transformers(directory: Path, pooling: str) -> None:
    types = ["Transformer", "Pooling", "Normalize"]
    package = "sentence_transformers.models"
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"{package}.{kind}"}
        for i, kind in enumerate(types)
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir(exist_ok=True)
    keys = {"mean": "mean_tokens", "max": "max_tokens", "cls": "cls_token", "last": "lasttoken"}
    config = {f"pooling_mode_{key}": mode == pooling for mode, key in keys.items()}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(config))
