"""A tiny model over padded batches, by the kernels: ``padded_forward.py DIRECTORY POOLING ...``.

Run with TRITON_INTERPRET=1 in a process of its own: whether ``triton`` interprets is settled when
it is first imported. The CPU's ops refuse tokens of no text; here the kernels are put in their
place. Prints, by pooling and bucket, the largest difference from the same texts without padding,
as JSON; a value that is not finite is a difference of 1e9.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from bertron_backend.buckets import Bucket, longest_by_class
from bertron_backend.packing import PackedRequest, split
from bertron_backend.position_ids import PositionNumbering
from bertron_kernels.attention import _varlen_attention_kernel, length_class
from bertron_kernels.ops import KERNELS
from bertron_kernels.schemas import NAMESPACE
from bertron_torchscript.checkpoint import read_checkpoint
from bertron_torchscript.export import build
from bertron_torchscript.model_file import pack

# Texts, and the buckets for them: one with room for a text of none, one with half of it padding,
# and one of the next length class.
CASES = (((1,), (16,)), ((17, 1, 9), (32, 64)), ((40, 3, 20), (64,)))
LIMIT = 64


def main(directory: Path, poolings: list[str]) -> None:
    if type(_varlen_attention_kernel).__name__ != "InterpretedFunction":
        raise SystemExit("the Triton interpreter is not active")
    library = torch.library.Library(NAMESPACE, "IMPL")
    for name, kernel in KERNELS.items():
        library.impl(name, kernel, "CPU")
    # PyTorch then fills what torch.empty returns with NaN: rows left unwritten are seen.
    torch.use_deterministic_algorithms(True)
    found = {pooling: differences(directory, pooling) for pooling in poolings}
    sys.stdout.write(json.dumps(found))


@torch.inference_mode()
def differences(directory: Path, pooling: str) -> dict[int, float]:
    checkpoint = read_checkpoint(str(directory), pooling=pooling, normalize=True)
    model, _ = build(checkpoint, checkpoint.config.num_layers)
    pack(model)
    numbering = PositionNumbering(model.position_offset, model.pad_token_id)
    generator = np.random.default_rng(0)
    found: dict[int, float] = {}
    for lengths, sizes in CASES:
        # From 0 on: the padding token counts in BERT and does not in RoBERTa.
        ids = generator.integers(0, checkpoint.config.vocab_size, sum(lengths), dtype=np.int32)
        (batch,) = split(PackedRequest(ids, np.zeros_like(ids), list(lengths)), 1)
        arrays = (batch.input_ids, batch.token_type_ids, batch.cu_seqlens)
        exact = model.forward_packed(*map(torch.from_numpy, arrays), batch.max_seqlen)
        for bucket in map(Bucket, sizes):
            buffer = np.full(bucket.size, -7, dtype=np.int32)
            bucket.fill(buffer, batch, numbering.of(batch))
            max_seqlen = longest_by_class(bucket.tokens, LIMIT)[length_class(batch.max_seqlen)]
            inputs = bucket.sections(torch.from_numpy(buffer))
            padded = model.forward_positions(*inputs, max_seqlen)[: len(lengths)]
            difference = (padded - exact).abs().nan_to_num(1e9).max()
            found[bucket.tokens] = max(float(difference), found.get(bucket.tokens, 0.0))
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
