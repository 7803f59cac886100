"""A model that overflows in float16 and not in bfloat16: ``float16_overflow.py DIRECTORY``.

Run with BERTRON_CPU_KERNELS=eager in a process of its own. As it is served the CPU computes float16
in float32, where nothing overflows; PyTorch's own operators round each product to float16, as a GPU
does. Prints what the probe found, as JSON.
"""

import json
import sys
from pathlib import Path

import torch
from bertron_backend.packing import PackedBatch, Vocabulary
from bertron_backend.probe import all_finite, random_batch, settle_dtype
from bertron_kernels import implementation
from bertron_torchscript.bert import Bert
from bertron_torchscript.checkpoint import read_checkpoint
from bertron_torchscript.export import build
from bertron_torchscript.model_file import pack, set_dtypes

VOCABULARY = Vocabulary(vocab_size=400, type_vocab_size=2, max_tokens_per_text=64)


@torch.inference_mode()
def main(directory: Path) -> None:
    if implementation("cpu") != "eager":
        raise SystemExit("the CPU's own kernels are active")
    checkpoint = read_checkpoint(str(directory), pooling="mean", normalize=True)

    def load(dtype: str) -> None:
        nonlocal model, loaded
        loaded = dtype
        model, _ = build(checkpoint, checkpoint.config.num_layers)
        set_dtypes(model, torch.device("cuda"), dtype)
        pack(model)

    def forward(batch: PackedBatch):
        arrays = (batch.input_ids, batch.token_type_ids, batch.cu_seqlens)
        return model.forward_packed(*map(torch.from_numpy, arrays), batch.max_seqlen).numpy()

    model: Bert
    loaded = ""
    load("float16")
    batches = [random_batch(lengths, VOCABULARY) for lengths in ([5], [64, 3, 17])]
    overflows = not all_finite(forward, batches)
    settle_dtype("float16", load, forward, batches)
    found = {
        "overflows": overflows,
        "settled": loaded,
        "weights": sorted({str(parameter.dtype) for parameter in model.parameters()}),
        "finite": all_finite(forward, batches),
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
