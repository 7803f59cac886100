"""Hugging Face parameter names to ours: one table an architecture, nothing left unexplained."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from bertron_torchscript.checkpoint import EncoderConfig
from bertron_torchscript.errors import ExportError

# Ours → Hugging Face's, without the model's prefix. Query, key and value become one matrix.
_BERT_EMBEDDINGS = {
    "word_embeddings": "embeddings.word_embeddings.weight",
    "position_embeddings": "embeddings.position_embeddings.weight",
    "token_type_embeddings": "embeddings.token_type_embeddings.weight",
    "embedding_norm_weight": "embeddings.LayerNorm.weight",
    "embedding_norm_bias": "embeddings.LayerNorm.bias",
}
_BERT_LAYER = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "intermediate": "intermediate.dense",
    "down": "output.dense",
    "output_norm": "output.LayerNorm",
}
_DISTILBERT_LAYER = {
    "query": "attention.q_lin",
    "key": "attention.k_lin",
    "value": "attention.v_lin",
    "output": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "intermediate": "ffn.lin1",
    "down": "ffn.lin2",
    "output_norm": "output_layer_norm",
}
_LAYER_PREFIX = {
    "bert": "encoder.layer.",
    "roberta": "encoder.layer.",
    "distilbert": "transformer.layer.",
}

# Known and not part of the encoder: buffers, the unused pooler, and heads for other tasks.
_NOT_THE_ENCODER = re.compile(
    r"(.*\.)?embeddings\.(position_ids|token_type_ids)"
    r"|(.*\.)?pooler\..*"
    r"|(cls|classifier|lm_head|qa_outputs|pre_classifier)\..*"
    r"|vocab_(transform|layer_norm|projector)\..*"
)


def read_safetensors(paths: Iterable[Path]) -> dict[str, Tensor]:
    """All tensors of ``paths``.

    Raises:
        ExportError: A file is not safetensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for path in paths:
        try:
            tensors.update(load_file(path))
        except (SafetensorError, OSError, ValueError) as error:
            raise ExportError(f"{path} is not a readable safetensors file: {error}") from error
    return tensors


def map_weights(
    tensors: Mapping[str, Tensor], config: EncoderConfig, source: Path
) -> tuple[dict[str, Tensor], list[str]]:
    """Rename a checkpoint's tensors to the parameters of :class:`bertron_torchscript.bert.Bert`.

    Args:
        tensors: Name → tensor, as stored.
        config: Sizes that the tensors must agree with.
        source: Where they came from, for messages.

    Returns:
        The state dict in float32, every layer of the checkpoint included, and the names that are
        known and not part of the encoder (heads, an unused pooler).

    Raises:
        ExportError: A weight is missing, has another shape, or is known to nobody.
    """
    remaining = {_canonical(name, config.architecture): tensor for name, tensor in tensors.items()}
    skipped = sorted(name for name in remaining if _NOT_THE_ENCODER.fullmatch(name))
    for name in skipped:
        del remaining[name]

    def take(name: str) -> Tensor:
        if name not in remaining:
            raise ExportError(f"{source}: weight {name!r} is missing")
        return remaining.pop(name).to(torch.float32)

    state: dict[str, Tensor] = {}
    for ours, theirs in _BERT_EMBEDDINGS.items():
        if ours != "token_type_embeddings" or config.type_vocab_size:
            state[ours] = take(theirs)
    names = _DISTILBERT_LAYER if config.architecture == "distilbert" else _BERT_LAYER
    for layer in range(config.num_layers):
        prefix = f"{_LAYER_PREFIX[config.architecture]}{layer}."
        for kind in ("weight", "bias"):
            parts = [take(f"{prefix}{names[part]}.{kind}") for part in ("query", "key", "value")]
            state[f"layers.{layer}.qkv_{kind}"] = torch.cat(parts)
            for ours in ("output", "attention_norm", "intermediate", "down", "output_norm"):
                state[f"layers.{layer}.{ours}_{kind}"] = take(f"{prefix}{names[ours]}.{kind}")
    if remaining:
        listed = ", ".join(sorted(remaining)[:5]) + (", ..." if len(remaining) > 5 else "")
        raise ExportError(
            f"{source}: {len(remaining)} weights that a {config.architecture} encoder of "
            f"{config.num_layers} layers does not have: {listed}"
        )
    return state, skipped


def _canonical(name: str, architecture: str) -> str:
    """Without the model's prefix, and with today's names for layer norm's parameters."""
    name = name.removeprefix(f"{architecture}.")
    # TensorFlow's names, still in checkpoints of 2018 such as bert-base-uncased's.
    return re.sub(
        r"LayerNorm\.gamma$",
        "LayerNorm.weight",
        re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name),
    )
