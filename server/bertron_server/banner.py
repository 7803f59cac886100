"""What `bertron serve` says when it is ready, read from the files that `bertron export` wrote."""

import importlib.metadata
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENCODER = "bert"
DEFAULT_ENSEMBLE = "text_embedding"


@dataclass(frozen=True)
class ServedModel:
    """One encoder of the repository and the ensemble before it.

    Attributes:
        ensemble: The name that clients call.
        encoder: The name of the model that computes.
        manifest: What the export wrote; empty where it cannot be read.
    """

    ensemble: str
    encoder: str
    manifest: dict[str, Any]


def served_models(model_repository: Path) -> list[ServedModel]:
    """Return the encoders of a repository with the ensembles that clients call for them."""
    directories = sorted(config.parent for config in model_repository.glob("*/config.pbtxt"))
    return [
        ServedModel(
            ensemble=DEFAULT_ENSEMBLE if path.name == ENCODER else path.name[: -len("_bert")],
            encoder=path.name,
            manifest=_manifest(path / "1" / "manifest.json"),
        )
        for path in directories
        if path.name == ENCODER or path.name.endswith("_bert")
    ]


def missing_exports(model_repository: Path) -> list[Path]:
    """Return the TorchScript files that the repository's encoders lack."""
    files = (
        model_repository / model.encoder / "1" / "model.pt"
        for model in served_models(model_repository)
    )
    return [file for file in files if not file.exists()]


def _manifest(path: Path) -> dict[str, Any]:
    """The manifest's fields; a missing or broken one makes a shorter banner, not an error."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}


def banner(
    *,
    model_repository: Path,
    devices: dict[str, str],
    server_version: tuple[int, int] | None,
    ready_after_s: float,
    urls: dict[str, str],
) -> str:
    """Return the lines for a person: what is served, on what, within which limits, and where.

    Args:
        model_repository: Where the models are.
        devices: For each encoder "CPU" or "GPU"; one that is not named is left out.
        server_version: Of Triton server, where it is known.
        ready_after_s: From start to ready.
        urls: What stands before each URL, and the URL.
    """
    server = "Triton server" + (" {}.{}".format(*server_version) if server_version else "")
    version = importlib.metadata.version("bertron")
    first = f"bertron {version} on {server}, ready in {ready_after_s:.1f} s"
    rows = []
    for model in served_models(model_repository):
        rows.append(("model", f"{model.ensemble}: {_description(model.manifest)}".rstrip(": ")))
        if model.encoder in devices:
            rows.append(("device", devices[model.encoder]))
        limits = _limits(model_repository / model.ensemble / "config.pbtxt", model.manifest)
        if limits:
            rows.append(("limits", limits))
    rows += [*urls.items(), ("stop", "Ctrl-C")]
    return "\n".join([first, *(f"  {name:<8} {value}" for name, value in rows)])


def _description(manifest: dict[str, Any]) -> str:
    pooling = manifest.get("pooling")
    traits = [
        manifest.get("architecture"),
        manifest.get("dtype"),
        pooling and f"{pooling} pooling",
        manifest.get("normalize") and "length 1",
    ]
    in_brackets = ", ".join(str(trait) for trait in traits if trait)
    size = manifest.get("embedding_size")
    parts = [
        str(manifest.get("name", "")),
        f"({in_brackets})" if in_brackets else "",
        f"{size} dimensions" if size else "",
    ]
    return " ".join(part for part in parts if part)


def _limits(ensemble_config: Path, manifest: dict[str, Any]) -> str:
    try:
        config = ensemble_config.read_text(encoding="utf-8")
    except OSError:
        config = ""
    limits = manifest.get("limits")
    tokens = limits.get("max_tokens_per_text") if isinstance(limits, dict) else None
    characters = _number(
        r'"max_characters_per_text"\s*value\s*:?\s*{\s*string_value:\s*"(\d+)"', config
    )
    texts = _number(r"^max_batch_size:\s*(\d+)", config)
    parts = [
        f"{tokens} tokens a text" if tokens else "",
        f"{characters:,} characters a text" if characters else "",
        f"{texts} texts a request" if texts else "",
    ]
    return ", ".join(part for part in parts if part)


def _number(pattern: str, text: str) -> int | None:
    match = re.search(pattern, text, re.MULTILINE)
    return int(match[1]) if match else None
