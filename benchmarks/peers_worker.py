"""OpenVINO and ONNX Runtime, in a process and an environment of their own; see ``peers``.

Reads one JSON command a line and answers with one line: ``{"ok": ...}`` or ``{"error": "..."}``.
Imports nothing of Bertron's. It holds one model and one workload at a time, and times itself.
"""

import importlib.metadata
import json
import logging
import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from transformers import AutoModel

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Pooled(torch.nn.Module):
    """The encoder with a normalised mean over each text's tokens."""

    def __init__(self, directory, attention):
        super().__init__()
        self.encoder = AutoModel.from_pretrained(
            directory, attn_implementation=attention, use_safetensors=True, local_files_only=True
        )

    def forward(self, input_ids, attention_mask, token_type_ids):
        """[B, S] each → [B, E]."""
        kept = attention_mask.to(torch.float32)
        # Additive and [B, 1, 1, S]: tracing would bake transformers' own decisions into the graph.
        hidden = self.encoder(
            input_ids=input_ids,
            attention_mask=(1.0 - kept[:, None, None, :]) * -1e9,
            token_type_ids=token_type_ids,
        ).last_hidden_state
        summed = (hidden * kept[:, :, None]).sum(1)  # the mean's divisor falls out below
        return torch.nn.functional.normalize(summed, dim=1)


class Worker:
    """The commands."""

    def __init__(self):
        self.engines = {}
        self.batches = []
        self.cores = len(os.sched_getaffinity(0))

    def versions(self):
        """Of what is measured here."""
        return {name: importlib.metadata.version(name) for name in ("openvino", "onnxruntime")}

    def load(self, checkpoint, folder):
        """Convert a checkpoint for both engines, in place of the last one.

        Args:
            checkpoint: A Hugging Face directory.
            folder: Where the ONNX files are kept.
        """
        self.engines = {}  # the last model's memory goes first
        self.engines = {"openvino": self._openvino(checkpoint)}
        self.engines["onnxruntime"] = self._onnxruntime(checkpoint, Path(folder))

    def workload(self, file):
        """Read the batches that follow: arrays ``ids_N`` and ``mask_N``."""
        arrays = np.load(file)
        self.batches = [
            dict(
                zip(
                    INPUTS,
                    (arrays[f"ids_{n}"], arrays[f"mask_{n}"], np.zeros_like(arrays[f"ids_{n}"])),
                    strict=True,
                )
            )
            for n in range(len(arrays.files) // 2)
        ]

    def run(self, engine, vectors=None):
        """Encode all batches; the seconds that took, and the vectors into a file where asked."""
        embed = self.engines[engine]
        started = time.perf_counter()
        rows = [embed(batch) for batch in self.batches]
        seconds = time.perf_counter() - started
        if vectors is not None:
            np.save(vectors, np.concatenate(rows))
        return seconds

    def _openvino(self, checkpoint):
        # Straight from PyTorch, since that keeps the fused attention: by way of ONNX it is slower.
        model = Pooled(checkpoint, "sdpa").eval()
        example = dict.fromkeys(INPUTS, torch.ones(2, 16, dtype=torch.int64))
        converted = openvino.convert_model(model, example_input=example)
        options = {
            "INFERENCE_PRECISION_HINT": "bf16",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self.cores,
        }
        compiled = openvino.Core().compile_model(converted, "CPU", options)
        request = compiled.create_infer_request()
        return lambda batch: request.infer(batch)[0].copy()

    def _onnxruntime(self, checkpoint, folder):
        folder.mkdir(parents=True, exist_ok=True)
        narrow = folder / "int8.onnx"
        if not narrow.exists():
            wide, draft = folder / "float32.onnx", folder / "int8.tmp"
            ones = torch.ones(2, 16, dtype=torch.int64)
            torch.onnx.export(
                Pooled(checkpoint, "eager").eval(),
                (ones, ones, torch.zeros_like(ones)),
                str(wide),
                dynamo=False,
                opset_version=18,
                input_names=list(INPUTS),
                output_names=["embedding"],
                dynamic_axes={key: {0: "B", 1: "S"} for key in INPUTS} | {"embedding": {0: "B"}},
            )
            quantize_dynamic(wide, draft, weight_type=QuantType.QInt8, per_channel=True)
            draft.replace(narrow)
            wide.unlink()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.cores
        session = onnxruntime.InferenceSession(str(narrow), options, ["CPUExecutionProvider"])
        return lambda batch: session.run(None, batch)[0]


def main():
    """Answer commands until the end of the input."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever the libraries print is no answer
    worker = Worker()
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = {"ok": getattr(worker, command.pop("do"))(**command)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
