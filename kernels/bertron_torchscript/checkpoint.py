"""A Hugging Face directory, read and checked: configuration, pooling, tokenizer, weights.

Nothing is guessed: what the directory does not say and the user does not name is an error.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from bertron_torchscript.errors import ExportError, first_line, shortened
from bertron_torchscript.json_file import read_json
from bertron_torchscript.sentence_transformers import (
    SentenceTransformersFiles,
    read_sentence_transformers,
)

POOLING_MODES = ("mean", "max", "mean-max", "cls", "last")

# What the exported tokenizer.json may be chosen to be: see bertron_torchscript.tokenizer_file.
TOKENIZERS = ("file", "transformers")

# Hugging Face's model_type → how its checkpoints name and number things.
ARCHITECTURES = {
    "bert": "bert",
    "roberta": "roberta",
    "xlm-roberta": "roberta",
    "camembert": "roberta",
    "distilbert": "distilbert",
}

# Of an EncoderConfig's whole numbers; the others are sizes.
MAY_BE_ZERO = ("num_layers", "position_offset", "type_vocab_size", "pad_token_id")

MIN_TOKENS = 3  # [CLS] x [SEP]

# What transformers may make a tokenizer of.
TOKENIZER_SOURCES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "sentencepiece.bpe.model",
)

# What the hub must bring; a directory may hold much more.
HUB_PATTERNS = ["*.json", "*.safetensors", "*/config.json", *TOKENIZER_SOURCES]


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """The encoder's sizes, in one vocabulary for all architectures.

    Attributes:
        max_positions: Rows of the position table that a text may use, so the longest text.
        position_offset: Row of the first token: padding_idx + 1 for RoBERTa, else 0.
        type_vocab_size: 0 where the architecture has no token types.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_positions: int
    position_offset: int
    type_vocab_size: int
    layer_norm_eps: float
    pad_token_id: int

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads


@dataclasses.dataclass(frozen=True)
class Pooling:
    """How token vectors become one vector a text."""

    mode: str
    normalize: bool


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A directory whose files were found and understood; the weights are not read yet.

    Attributes:
        tokenizer_file: The ``tokenizer.json`` to export; it need not be there yet where
            ``tokenizer`` is "transformers".
        tokenizer: One of TOKENIZERS, or None: the file, which must read as transformers does.
        lower_case_file: What says that texts are lower-cased before the tokenizer reads them.
        notes: What the user should know of it, a line each.
    """

    directory: Path
    name: str
    config: EncoderConfig
    pooling: Pooling
    max_tokens_per_text: int
    weight_files: tuple[Path, ...]
    tokenizer_file: Path
    tokenizer: str | None = None
    lower_case_file: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def source_files(self) -> tuple[Path, ...]:
        """Every file that decides what the export computes."""
        tokenizer: tuple[Path, ...] = (self.tokenizer_file,)
        if self.tokenizer == "transformers":
            sources = [self.directory / name for name in TOKENIZER_SOURCES]
            tokenizer = tuple(path for path in sources if path.is_file())
        return (self.directory / "config.json", *tokenizer, *self.weight_files)


def fetch(source: str) -> Path:
    """The local directory of ``source``: itself, or the hub repository of that name.

    Raises:
        ExportError: Neither a directory nor a hub repository that can be fetched.
    """
    directory = Path(source).expanduser()
    if directory.is_dir():
        return directory
    if directory.exists() or source.count("/") > 1 or source.startswith((".", "/", "~")):
        raise ExportError(f"{source}: no such directory")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=HUB_PATTERNS))
    except Exception as error:  # the hub's client raises a dozen unrelated classes
        raise ExportError(
            f"{source}: neither a directory nor fetched from the hub: {first_line(error)}"
        ) from error


def read_checkpoint(
    source: str,
    *,
    called: str | None = None,
    pooling: str | None = None,
    normalize: bool | None = None,
    max_tokens: int | None = None,
    tokenizer: str | None = None,
) -> Checkpoint:
    """Read everything but the weights of ``source``.

    Args:
        source: A directory, or a hub name where there is a network.
        called: What people call the model; None takes the hub name or the directory's.
        pooling: One of POOLING_MODES; None takes what ``modules.json`` says.
        normalize: Whether embeddings get length 1; None takes what ``modules.json`` says.
        max_tokens: Longest text in tokens, special ones included; None takes the checkpoint's.
        tokenizer: One of TOKENIZERS; None takes ``tokenizer.json``, to be compared with
            transformers' tokenizer.

    Raises:
        ExportError: A file is missing or says something that is not supported.
    """
    _check_chosen("pooling", pooling, POOLING_MODES)
    _check_chosen("tokenizer", tokenizer, TOKENIZERS)
    directory = fetch(source)
    # First: a layout with the weights elsewhere has no config.json here, and a reason to say.
    said = read_sentence_transformers(directory, pooling)
    raw = read_json(directory / "config.json")
    config = encoder_config(raw, directory / "config.json")
    if (directory / "adapter_config.json").is_file():
        raise ExportError(
            f"{directory / 'adapter_config.json'}: the weights are a PEFT adapter's; merge it into "
            "its model (merge_and_unload) and save that"
        )
    tokenizer_file = directory / "tokenizer.json"
    if tokenizer != "transformers" and not tokenizer_file.is_file():
        raise ExportError(
            f"{tokenizer_file} is missing: --tokenizer transformers makes it of the other files "
            "in the directory, as transformers does"
        )
    return Checkpoint(
        directory=directory,
        name=called or (directory.resolve().name if directory == Path(source) else source),
        config=config,
        pooling=_pooling(directory, said, pooling, normalize),
        max_tokens_per_text=_max_tokens(directory, said, config, max_tokens),
        weight_files=_weight_files(directory),
        tokenizer_file=tokenizer_file,
        tokenizer=tokenizer,
        lower_case_file=said.transformer_file if said.does_lower_case else None,
        notes=said.notes,
    )


def _check_chosen(what: str, chosen: str | None, known: tuple[str, ...]) -> None:
    if chosen is not None and chosen not in known:
        raise ExportError(f"{what} {chosen!r} is not known; choose one of {', '.join(known)}")


def encoder_config(raw: dict[str, Any], path: Path) -> EncoderConfig:
    """Translate a Hugging Face ``config.json``.

    Raises:
        ExportError: The architecture, activation or a variant of attention is not supported.
    """
    model_type = raw.get("model_type")
    architecture = ARCHITECTURES.get(str(model_type))
    if architecture is None:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ExportError(f"{path}: model_type {model_type!r} is not supported; known: {known}")
    distilbert = architecture == "distilbert"
    try:
        config = EncoderConfig(
            architecture=architecture,
            vocab_size=raw["vocab_size"],
            hidden_size=raw["dim" if distilbert else "hidden_size"],
            num_layers=raw["n_layers" if distilbert else "num_hidden_layers"],
            num_heads=raw["n_heads" if distilbert else "num_attention_heads"],
            intermediate_size=raw["hidden_dim" if distilbert else "intermediate_size"],
            max_positions=raw["max_position_embeddings"],
            position_offset=0,
            type_vocab_size=0 if distilbert else raw.get("type_vocab_size", 2),
            # DistilBERT's is fixed in its code: transformers, modeling_distilbert.py
            layer_norm_eps=1e-12 if distilbert else raw.get("layer_norm_eps", 1e-12),
            pad_token_id=_or_default(
                raw.get("pad_token_id"), 1 if architecture == "roberta" else 0
            ),
        )
    except KeyError as error:
        raise ExportError(f"{path}: {error.args[0]} is missing") from None
    _check_numbers(config, path)
    if architecture == "roberta":
        # Positions start after the padding index: transformers, create_position_ids_from_input_ids.
        offset = config.pad_token_id + 1
        config = dataclasses.replace(
            config, position_offset=offset, max_positions=config.max_positions - offset
        )
    _check_supported(raw, config, path)
    return config


def _check_numbers(config: EncoderConfig, path: Path) -> None:
    """What is computed with must be numbers that a model can have; names are EncoderConfig's."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.type == "int":
            least = 0 if field.name in MAY_BE_ZERO else 1
            is_right = type(value) is int and value >= least
            expected = f"a whole number of at least {least}"
        elif field.type == "float":
            is_right = type(value) in (int, float) and value > 0
            expected = "a number above 0"
        else:
            continue
        if not is_right:
            raise ExportError(f"{path}: {field.name} is {value!r}, expected {expected}")


def _check_supported(raw: dict[str, Any], config: EncoderConfig, path: Path) -> None:
    activation = raw.get(
        "activation" if config.architecture == "distilbert" else "hidden_act", "gelu"
    )
    if activation != "gelu":
        raise ExportError(f"{path}: activation {activation!r} is not supported; known: gelu (erf)")
    positions = raw.get("position_embedding_type") or "absolute"
    if positions != "absolute":
        raise ExportError(
            f"{path}: position_embedding_type {positions!r} is not supported; known: absolute"
        )
    if raw.get("is_decoder") or raw.get("add_cross_attention"):
        raise ExportError(f"{path}: the model is a decoder; only encoders are supported")
    if raw.get("quantization_config") is not None:
        raise ExportError(
            f"{path}: quantization_config: quantised weights are not supported; save the model "
            "as it was before (--dtype int8 quantises here)"
        )
    if config.hidden_size % config.num_heads:
        raise ExportError(
            f"{path}: hidden size {config.hidden_size} is not a multiple of "
            f"the number of heads {config.num_heads}"
        )


def _pooling(
    directory: Path, said: SentenceTransformersFiles, mode: str | None, normalize: bool | None
) -> Pooling:
    """The user's word first, then ``modules.json``; never a guess."""
    mode = mode or said.pooling_mode
    if mode is None:
        raise ExportError(
            f"{directory / 'modules.json'} is missing, so the pooling is not known; "
            f"name it with --pooling {{{','.join(POOLING_MODES)}}}"
        )
    return Pooling(mode, said.normalize if normalize is None else normalize)


def _max_tokens(
    directory: Path, said: SentenceTransformersFiles, config: EncoderConfig, chosen: int | None
) -> int:
    """The user's word first, then sentence-transformers', then the tokenizer's."""
    most = config.max_positions
    if chosen is not None:
        if not MIN_TOKENS <= chosen <= most:
            raise ExportError(
                f"--max-tokens {chosen} is outside {MIN_TOKENS}..{most}, "
                "what the model's position table allows"
            )
        return chosen
    if said.transformer_file is not None and said.max_seq_length is not None:
        declared = said.max_seq_length
        if type(declared) is not int or declared < MIN_TOKENS:
            raise _no_length(said.transformer_file, "max_seq_length", declared)
        return min(most, declared)
    path = directory / "tokenizer_config.json"
    declared = read_json(path).get("model_max_length") if path.is_file() else None
    if declared is None:
        return most
    length = _written_length(declared)
    if length is None or length < MIN_TOKENS:
        raise _no_length(path, "model_max_length", declared)
    return int(min(most, length))


def _written_length(declared: Any) -> float | None:
    """A number however it is written: "no limit" is 1e30, Infinity or a very long integer."""
    if isinstance(declared, str) and declared.isdecimal():
        return float(declared)
    if type(declared) is float:
        return declared if math.isinf(declared) or declared.is_integer() else None
    return declared if type(declared) is int else None


def _no_length(path: Path, key: str, declared: Any) -> ExportError:
    return ExportError(
        f"{path}: {key} is {shortened(declared)}, expected a whole number of at least "
        f"{MIN_TOKENS}; --max-tokens overrides it"
    )


def _weight_files(directory: Path) -> tuple[Path, ...]:
    single = directory / "model.safetensors"
    if single.is_file():
        return (single,)
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        weight_map = read_json(index).get("weight_map", {})
        files = list(weight_map.values()) if isinstance(weight_map, dict) else [weight_map]
        if not all(isinstance(name, str) for name in files):
            raise ExportError(f"{index}: weight_map is no JSON object of file names")
        names = sorted(set(files))
        missing = [name for name in names if not (directory / name).is_file()]
        if missing or not names:
            raise ExportError(f"{index}: names {missing or 'no files'}, not in the directory")
        return tuple(directory / name for name in names)
    pickled = sorted(path.name for path in directory.glob("pytorch_model*.bin"))
    hint = f" ({pickled[0]} is a pickle, which may run code, and is never read)" if pickled else ""
    raise ExportError(f"{single} is missing{hint}: save the model as safetensors")


def _or_default(value: int | None, default: int) -> int:
    return default if value is None else value
