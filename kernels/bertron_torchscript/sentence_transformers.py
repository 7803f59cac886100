"""What a checkpoint's sentence-transformers files say: modules, pooling, longest text, prompts.

Read as sentence-transformers 6.2 reads them. What it would do with a text and the server cannot is
an error, so that the server's vectors are the checkpoint's own.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from bertron_torchscript.errors import ExportError, shortened
from bertron_torchscript.json_file import read_json

# The transformer module's own file; the first that says something counts, as in Transformer's
# load_config (sentence_transformers/base/modules/transformer.py).
TRANSFORMER_FILES = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)

# What the transformer module hands on to transformers → what of it changes no vector here.
# trust_remote_code is ignored by sentence-transformers itself.
HANDED_ON: dict[str, frozenset[str]] = {
    **dict.fromkeys(
        ("model_args", "model_kwargs"),
        frozenset(
            {
                "attn_implementation",
                "dtype",
                "low_cpu_mem_usage",
                "torch_dtype",
                "trust_remote_code",
            }
        ),
    ),
    **dict.fromkeys(
        (
            "config_args",
            "config_kwargs",
            "processing_kwargs",
            "processor_kwargs",
            "tokenizer_args",
            "tokenizer_kwargs",
        ),
        frozenset({"trust_remote_code"}),
    ),
}

# sentence-transformers' name of a mode → ours, where there is one.
MODES = {"mean": "mean", "max": "max", "cls": "cls", "lasttoken": "last"}

# The older spelling has a key a mode, and concatenates in this order.
MODE_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

SHOWN_PROMPTS = 5  # in the line about them


@dataclasses.dataclass(frozen=True)
class SentenceTransformersFiles:
    """What the files say; without any of them nothing.

    Attributes:
        pooling_mode: As modules.json has it, in our names; None where there is no modules.json.
        normalize: Whether modules.json ends with Normalize.
        transformer_file: The file that ``max_seq_length`` is of; None where there is none.
        max_seq_length: The longest text in tokens, not checked yet; None where it is not said.
        does_lower_case: Each text is to be lower-cased before the tokenizer reads it.
        prompts: What may stand before a text, by its name; none is empty.
    """

    pooling_mode: str | None = None
    normalize: bool = False
    transformer_file: Path | None = None
    max_seq_length: Any = None
    does_lower_case: bool = False
    prompts: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user is told, a line each."""
        if not self.prompts:
            return ()
        shown = [f"{name} {shortened(text, 40)}" for name, text in self.prompts.items()]
        more = [f"{len(shown) - SHOWN_PROMPTS} more"] if len(shown) > SHOWN_PROMPTS else []
        return (
            f"the checkpoint has prompts ({', '.join(shown[:SHOWN_PROMPTS] + more)}): "
            "put it before the text yourself: the server adds none",
        )


def read_sentence_transformers(
    directory: Path, chosen_pooling: str | None = None
) -> SentenceTransformersFiles:
    """Read the sentence-transformers files in ``directory``, as far as there are any.

    Args:
        directory: Where ``modules.json`` lies, or would.
        chosen_pooling: The user's pooling, which is taken instead of the checkpoint's.

    Raises:
        ExportError: A file asks for something that the server would not do.
    """
    modules_file = directory / "modules.json"
    modules = _modules(modules_file) if modules_file.is_file() else None
    # An old layout has this one beside the weights, in a folder without modules.json.
    transformer_file, transformer = _transformer(directory)
    mode, prompts = None, dict[str, str]()
    if modules is not None:
        pooling_file = directory / modules.get("Pooling", "") / "config.json"
        if chosen_pooling is not None:
            mode = chosen_pooling
        elif "Pooling" in modules:
            mode = _pooling_mode(pooling_file)
        else:
            raise ExportError(f"{modules_file} names no pooling; name it with --pooling")
        prompts = _prompts(directory / "config_sentence_transformers.json")
        if "Pooling" in modules and prompts:
            _check_prompts_are_pooled(pooling_file)
    return SentenceTransformersFiles(
        pooling_mode=mode,
        normalize=modules is not None and "Normalize" in modules,
        transformer_file=transformer_file,
        max_seq_length=transformer.get("max_seq_length"),
        does_lower_case=bool(transformer.get("do_lower_case")),
        prompts=prompts,
    )


def _modules(path: Path) -> dict[str, str]:
    """Each module's folder by its kind, once all are known and in an order that we compute."""
    kinds: list[str] = []
    folders: dict[str, str] = {}
    for module in read_json(path, list):
        if not isinstance(module, dict):
            raise ExportError(f"{path}: the module {shortened(module)} is no JSON object")
        name, folder = module.get("type"), module.get("path", "")
        kind = str(name).rsplit(".", 1)[-1]
        is_known = str(name).startswith("sentence_transformers.") and kind in (
            "Transformer",
            "Pooling",
            "Normalize",
        )
        if not is_known:  # a class of the checkpoint's own is code, which is never run
            raise ExportError(f"{path}: module type {name!r} is not supported")
        if not isinstance(folder, str):
            raise ExportError(f"{path}: the path of {name} is {folder!r}, expected a string")
        if kind == "Transformer" and folder not in ("", "."):
            raise ExportError(
                f"{path}: the Transformer module lies in {folder!r}, not beside modules.json; "
                f"export {path.parent / folder} itself, with the --pooling and --normalize that "
                "modules.json names"
            )
        kinds.append(kind)
        folders[kind] = folder
    middle = ["Pooling"] if "Pooling" in kinds else []
    end = ["Normalize"] * kinds.count("Normalize")  # a second one changes nothing
    if kinds != ["Transformer", *middle, *end]:
        raise ExportError(
            f"{path}: the modules {', '.join(kinds) or 'none'} are not supported in this order; "
            "known: Transformer, Pooling and, where there is one, Normalize"
        )
    return folders


def _pooling_mode(path: Path) -> str:
    """Both spellings of sentence-transformers, in our names."""
    modes = _declared_modes(path)
    if len(modes) == 1 and modes[0] in MODES:
        return MODES[modes[0]]
    if modes == ("mean", "max"):
        return "mean-max"
    if modes == ("max", "mean"):
        # ours is mean first, as bert-as-service's
        raise ExportError(
            f"{path}: sentence-transformers concatenates max then mean, which is not supported; "
            "--pooling mean-max gives the same numbers with mean first, then max"
        )
    named = " and ".join(modes) + (" concatenated" if len(modes) > 1 else "")
    if modes == ("mean_sqrt_len_tokens",):
        difference = "--pooling mean would give vectors of another length, in the same direction"
    else:
        difference = "--pooling would give other vectors than the checkpoint's"
    raise ExportError(f"{path}: pooling {named or 'none'} is not supported; {difference}")


def _declared_modes(path: Path) -> tuple[str, ...]:
    """The modes that are concatenated, in sentence-transformers' names and order."""
    raw = read_json(path)
    declared = raw.get("pooling_mode")
    if declared is None:
        # Where no key is true sentence-transformers takes the mean.
        return tuple(mode for key, mode in MODE_KEYS.items() if raw.get(key)) or ("mean",)
    return tuple(map(str, declared if isinstance(declared, list) else [declared]))


def _check_prompts_are_pooled(path: Path) -> None:
    if path.is_file() and read_json(path).get("include_prompt", True) is False:
        raise ExportError(
            f"{path}: include_prompt is false, and the checkpoint has prompts: "
            "sentence-transformers leaves a prompt's tokens out of the pooling, the server cannot; "
            'remove "include_prompt" to have them pooled too'
        )


def _prompts(path: Path) -> dict[str, str]:
    """The prompts that are not empty, when none is put before every text."""
    if not path.is_file():
        return {}
    raw = read_json(path)
    dimensions = raw.get("truncate_dim")
    if dimensions is not None:
        raise ExportError(
            f"{path}: truncate_dim is {shortened(dimensions)}, the server gives all dimensions; "
            "remove the key, and let the client ask with dimensions="
        )
    declared = raw.get("prompts") or {}
    if not isinstance(declared, dict):
        raise ExportError(f"{path}: prompts is {shortened(declared)}, expected a JSON object")
    prompts = {name: text for name, text in declared.items() if text}
    wrong = [name for name, text in prompts.items() if not isinstance(text, str)]
    if wrong:
        raise ExportError(
            f"{path}: the prompt {wrong[0]} is {shortened(prompts[wrong[0]])}, expected a string"
        )
    default = raw.get("default_prompt_name")
    if isinstance(default, str) and default in prompts:
        raise ExportError(
            f"{path}: default_prompt_name is {default!r}: sentence-transformers puts "
            f"{shortened(prompts[default])} before every text, the server does not; remove the "
            "key, and let the client put the prompt before its texts"
        )
    return prompts


def _transformer(directory: Path) -> tuple[Path | None, dict[str, Any]]:
    """The transformer module's file that counts, and what it says."""
    for name in TRANSFORMER_FILES:
        path = directory / name
        if path.is_file() and (raw := read_json(path)):
            _check_transformer(path, raw)
            return path, raw
    return None, {}


def _check_transformer(path: Path, raw: dict[str, Any]) -> None:
    for key, harmless in HANDED_ON.items():
        value = raw.get(key) or {}
        if not isinstance(value, dict) or not value.keys() <= harmless:
            raise ExportError(
                f"{path}: {key} is {shortened(value)}, which sentence-transformers hands on to "
                "transformers and the server does not know; remove the key to export without it"
            )
    task = raw.get("transformer_task") or "feature-extraction"
    if task != "feature-extraction":
        raise ExportError(
            f"{path}: transformer_task {shortened(task)} is not supported; known: "
            "feature-extraction. Where the token vectors alone are wanted, remove the file and "
            "name --pooling and --max-tokens"
        )
    modalities = raw.get("modality_config")
    if modalities is None:
        return
    text = modalities.get("text") if isinstance(modalities, dict) else None
    output = text.get("method_output_name") if isinstance(text, dict) else text
    if output != "last_hidden_state":
        raise ExportError(
            f"{path}: modality_config takes {shortened(output)} of a text (method_output_name), "
            "which is not supported; known: last_hidden_state. Remove the key to pool that"
        )
