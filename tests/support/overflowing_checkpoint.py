"""A checkpoint whose values are beyond float16's range inside, though none of its weights is."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import make_checkpoint

FLOAT16_MAX = torch.finfo(torch.float16).max


def make_overflowing_checkpoint(directory: Path, **config: object) -> Path:
    """Write a BERT whose first layer's inner activations pass 65504, and return ``directory``.

    Args:
        directory: Made when missing.
        config: As ``make_checkpoint``'s.
    """
    make_checkpoint(directory, **config)
    path = directory / "model.safetensors"
    state = load_file(path)
    inner = state["encoder.layer.0.intermediate.dense.weight"]
    # 48 inputs of about 1 each: a sum is some seven times a weight.
    inner *= 0.9 * FLOAT16_MAX / inner.abs().max()
    save_file(state, path, {"format": "pt"})
    return directory
