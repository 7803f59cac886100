"""A Hugging Face directory, read and checked: configuration, pooling, tokenizer, weights.

Nothing is guessed: what the directory does not say and the user does not name is an error.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from bertron_torchscript.errors import ExportError

POOLING_MODES = ("mean", "max", "mean-max", "cls", "last")

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

# What the hub must bring; a directory may hold much more.
HUB_PATTERNS = ["*.json", "*.safetensors", "*/config.json"]


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
    """A directory whose files were found and understood; the weights are not read yet."""

    directory: Path
    name: str
    config: EncoderConfig
    pooling: Pooling
    max_tokens_per_text: int
    weight_files: tuple[Path, ...]
    tokenizer_file: Path

    @property
    def source_files(self) -> tuple[Path, ...]:
        """Every file that decides what the export computes."""
        return (self.directory / "config.json", self.tokenizer_file, *self.weight_files)


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
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError(
            f"{source}: neither a directory nor fetched from the hub: {cause}"
        ) from error


def read_checkpoint(
    source: str,
    *,
    called: str | None = None,
    pooling: str | None = None,
    normalize: bool | None = None,
    max_tokens: int | None = None,
) -> Checkpoint:
    """Read everything but the weights of ``source``.

    Args:
        source: A directory, or a hub name where there is a network.
        called: What people call the model; None takes the hub name or the directory's.
        pooling: One of POOLING_MODES; None takes what ``modules.json`` says.
        normalize: Whether embeddings get length 1; None takes what ``modules.json`` says.
        max_tokens: Longest text in tokens, special ones included; None takes the checkpoint's.

    Raises:
        ExportError: A file is missing or says something that is not supported.
    """
    directory = fetch(source)
    raw = _read_json(directory / "config.json")
    config = encoder_config(raw, directory / "config.json")
    tokenizer_file = directory / "tokenizer.json"
    if not tokenizer_file.is_file():
        raise ExportError(
            f"{tokenizer_file} is missing: save it once with "
            "transformers.AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    return Checkpoint(
        directory=directory,
        name=called or (directory.resolve().name if directory == Path(source) else source),
        config=config,
        pooling=_pooling(directory, pooling, normalize),
        max_tokens_per_text=_max_tokens(directory, config, max_tokens),
        weight_files=_weight_files(directory),
        tokenizer_file=tokenizer_file,
    )


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
    if config.hidden_size % config.num_heads:
        raise ExportError(
            f"{path}: hidden size {config.hidden_size} is not a multiple of "
            f"the number of heads {config.num_heads}"
        )


def _pooling(directory: Path, mode: str | None, normalize: bool | None) -> Pooling:
    """The user's word first, then ``modules.json``; never a guess."""
    if mode is not None and mode not in POOLING_MODES:
        raise ExportError(
            f"pooling {mode!r} is not known; choose one of {', '.join(POOLING_MODES)}"
        )
    modules_file = directory / "modules.json"
    if not modules_file.is_file():
        if mode is None:
            raise ExportError(
                f"{modules_file} is missing, so the pooling is not known; "
                f"name it with --pooling {{{','.join(POOLING_MODES)}}}"
            )
        return Pooling(mode, bool(normalize))
    found_mode, found_normalize = _sentence_transformers_pooling(directory, modules_file, mode)
    return Pooling(
        mode or found_mode,
        found_normalize if normalize is None else normalize,
    )


def _sentence_transformers_pooling(
    directory: Path, modules_file: Path, chosen: str | None
) -> tuple[str, bool]:
    mode, normalize = chosen or "", False
    for module in _read_json(modules_file, list):
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        if kind == "Pooling" and chosen is None:
            mode = _pooling_mode(directory / module.get("path", "") / "config.json")
        elif kind == "Normalize":
            normalize = True
        elif kind not in ("Transformer", "Pooling"):
            raise ExportError(
                f"{modules_file}: module type {module.get('type')!r} is not supported"
            )
    if not mode:
        raise ExportError(f"{modules_file} names no pooling; name it with --pooling")
    return mode, normalize


def _pooling_mode(path: Path) -> str:
    """Both spellings of sentence-transformers: one key a mode, or ``pooling_mode``."""
    raw = _read_json(path)
    names = {"mean": "mean", "max": "max", "cls": "cls", "lasttoken": "last"}
    keys = {
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_max_tokens": "max",
        "pooling_mode_cls_token": "cls",
        "pooling_mode_lasttoken": "last",
        "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
        "pooling_mode_weightedmean_tokens": "weightedmean",
    }
    declared = raw.get("pooling_mode")
    if declared is not None:
        declared = [declared] if isinstance(declared, str) else list(declared)
        modes = {names.get(mode, mode) for mode in declared}
    else:
        modes = {mode for key, mode in keys.items() if raw.get(key)}
    if modes == {"mean", "max"}:
        # sentence-transformers puts max before mean; ours is mean first, as bert-as-service's.
        raise ExportError(
            f"{path}: max and mean concatenated; name the order you want with --pooling mean-max"
        )
    if len(modes) != 1 or not modes <= set(POOLING_MODES):
        raise ExportError(
            f"{path}: pooling {sorted(modes)} is not supported; name one with --pooling"
        )
    (mode,) = modes
    return str(mode)


def _max_tokens(directory: Path, config: EncoderConfig, chosen: int | None) -> int:
    if chosen is not None:
        if not 3 <= chosen <= config.max_positions:  # [CLS] x [SEP]
            raise ExportError(
                f"--max-tokens {chosen} is outside 3..{config.max_positions}, "
                "what the model's position table allows"
            )
        return chosen
    limit = config.max_positions
    sentence_file = directory / "sentence_bert_config.json"
    if sentence_file.is_file():
        declared = _read_json(sentence_file).get("max_seq_length")
        limit = min(limit, declared) if declared else limit
    tokenizer_file = directory / "tokenizer_config.json"
    if tokenizer_file.is_file():
        declared = _read_json(tokenizer_file).get("model_max_length")
        limit = min(limit, int(declared)) if declared else limit
    return limit


def _weight_files(directory: Path) -> tuple[Path, ...]:
    single = directory / "model.safetensors"
    if single.is_file():
        return (single,)
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(_read_json(index).get("weight_map", {}).values()))
        missing = [name for name in names if not (directory / name).is_file()]
        if missing or not names:
            raise ExportError(f"{index}: names {missing or 'no files'}, not in the directory")
        return tuple(directory / name for name in names)
    pickled = sorted(path.name for path in directory.glob("pytorch_model*.bin"))
    hint = f" ({pickled[0]} is a pickle, which may run code, and is never read)" if pickled else ""
    raise ExportError(f"{single} is missing{hint}: save the model as safetensors")


def _or_default(value: int | None, default: int) -> int:
    return default if value is None else value


def _read_json(path: Path, kind: type = dict) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExportError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(value, kind):
        raise ExportError(f"{path}: expected a JSON {kind.__name__}, got {type(value).__name__}")
    return value
