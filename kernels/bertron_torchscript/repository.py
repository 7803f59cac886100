"""The model repository's configuration files, written for one export.

The files under ``model_repository/`` are the templates: they describe the default model. What
depends on the model are names, the embedding's size and the parameters that the manifest knows.
Everything else, comments included, is copied as it stands.
"""

from __future__ import annotations

import importlib.resources
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from bertron_torchscript.errors import ExportError
from bertron_torchscript.manifest import Manifest

STEPS = ("tokenizer", "bert", "text_embedding")
# A directory of the repository, a part of URLs, and of a shell line of Triton server's.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
# What `gpu_dtype` of `bert` may say. float16: as quick as bfloat16, and more exact where nothing
# overflows, which the server tries before it is ready.
GPU_DTYPES = ("float16", "bfloat16", "float32")
DEFAULT_GPU_DTYPE = "float16"
_SHIMS = ("tokenizer/1/model.py", "bert/1/model.py")


def template_directory() -> Path:
    """The checkout's ``model_repository/``, or the copy inside an installed package."""
    installed = Path(str(importlib.resources.files("bertron_torchscript"))) / "model_repository"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "model_repository"


def model_names(name: str | None) -> dict[str, str]:
    """Triton's name of each step: the defaults, or NAME_tokenizer, NAME_bert and NAME.

    Raises:
        ExportError: It can be no model's name.
    """
    if name is None or name == STEPS[2]:
        return {step: step for step in STEPS}
    if not NAME.fullmatch(name):
        raise ExportError(
            f"--name {name!r} cannot be a model's: at most 100 ASCII letters, digits, '_', '.' and "
            "'-', the first a letter, a digit or '_'"
        )
    return {"tokenizer": f"{name}_tokenizer", "bert": f"{name}_bert", "text_embedding": name}


def check_free(repository: Path, names: Mapping[str, str]) -> None:
    """Refuse names under which the repository has something else: the old export goes, no other.

    Raises:
        ExportError: An ensemble would take the place of a model that another one needs, or such a
            model that of an ensemble.
    """
    for step, model in names.items():
        config = repository / model / "config.pbtxt"
        if not config.is_file():
            continue
        is_ensemble = 'platform: "ensemble"' in config.read_text(encoding="utf-8")
        if is_ensemble != (step == "text_embedding"):
            kind = "an ensemble" if is_ensemble else "a model that an ensemble needs"
            raise ExportError(
                f"{repository / model} is {kind} already: choose another --name than "
                f"{names['text_embedding']}"
            )


def manifest_parameters(manifest: Manifest) -> dict[str, str]:
    """The parameters that the configurations take from the manifest, as they are written there."""
    return {
        "max_tokens_per_text": str(manifest.limits.max_tokens_per_text),
        "dtype": manifest.dtype,
        "pooling": manifest.pooling,
        "normalize": "true" if manifest.normalize else "false",
    }


def render_config(
    template: str, *, names: dict[str, str], embedding_size: int, parameters: Mapping[str, str]
) -> str:
    """Fill one ``config.pbtxt`` template: of ``parameters`` those that it has."""
    for step, name in names.items():
        template = re.sub(
            rf'^(\s*(?:model_)?name: )"{step}"', rf'\g<1>"{name}"', template, flags=re.M
        )
    template = re.sub(
        r'(name: "EMBEDDING" data_type: TYPE_FP32 dims: \[ )\d+',
        rf"\g<1>{embedding_size}",
        template,
    )
    for key, value in parameters.items():
        template = re.sub(
            rf'(key: "{key}" value \{{ string_value: ")[^"]*', rf"\g<1>{value}", template
        )
    return template


def write_configs(
    repository: Path, *, name: str | None, manifest: Manifest, gpu_dtype: str
) -> None:
    """Write the three configurations and the two shims into ``repository``."""
    templates = template_directory()
    names = model_names(name)
    for step, model in names.items():
        version = repository / model / "1"
        version.mkdir(parents=True, exist_ok=True)
        rendered = render_config(
            (templates / step / "config.pbtxt").read_text(encoding="utf-8"),
            names=names,
            embedding_size=manifest.embedding_size,
            parameters=manifest_parameters(manifest) | {"gpu_dtype": gpu_dtype},
        )
        target = repository / model / "config.pbtxt"
        # An unchanged file keeps its time, so that nothing rebuilds or reloads for nothing.
        if not target.exists() or target.read_text(encoding="utf-8") != rendered:
            target.write_text(rendered, encoding="utf-8")
    for shim in _SHIMS:
        step, _, rest = shim.partition("/")
        target = repository / names[step] / rest
        if not target.exists():
            shutil.copyfile(templates / shim, target)
