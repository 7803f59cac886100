"""The exported model with its weights in memory: packed batches in, embeddings out."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from bertron_kernels import implementation
from bertron_kernels.native import HAS_FAST_BF16
from bertron_torchscript.manifest import Manifest, checked_file
from bertron_torchscript.model_file import MODEL_FILE, freeze, load, no_profiling

from bertron_backend.batch_metrics import BatchCounts
from bertron_backend.cost_model import CostModel
from bertron_backend.cuda_graphs import MEGABYTE, CudaGraphs, obstacle
from bertron_backend.errors import InferenceError, InvalidInputError, RequestError
from bertron_backend.packing import (
    PackedBatch,
    PackedRequest,
    TokenRequest,
    Vocabulary,
    join,
    pack_request,
    split,
)
from bertron_backend.position_ids import PositionNumbering
from bertron_backend.probe import probe_batches, settle_dtype
from bertron_backend.settings import EncoderSettings, GpuSettings
from bertron_backend.shared_weights import SharedWeights, SharingError, default_directory

FloatArray = npt.NDArray[np.float32]
WARMUP_RUNS = 3  # the first makes buffers and threads, the others are timed against each other
# Activations of 1024 x (384 x 4 + 1536) floats, 12 MB for MiniLM, stay in a shared cache; 256 to
# 12,800 tokens took as long.
TOKENS_PER_CPU_FORWARD = 1024
TOKENS_PER_GPU_FORWARD = 16384
_log = logging.getLogger(__name__)


class Encoder:
    """One copy of the model on one device.

    Args:
        directory: Where ``model.pt`` and its manifest lie.
        device: ``cpu`` or ``cuda:N``.
        settings: The model's parameters.
        gpu_settings: Those that only a GPU has.

    Attributes:
        counts: Of the batches that were embedded, the warm-up's not among them.
        graphs: On a GPU, after the warm-up, where CUDA graphs are on and possible.
        shared_weights: Where other instances on CPUs have the same weights.

    Raises:
        ManifestError: The file is not what the export wrote.
    """

    def __init__(
        self,
        directory: Path,
        device: str,
        settings: EncoderSettings,
        gpu_settings: GpuSettings = GpuSettings(),  # noqa: B008  frozen
    ) -> None:
        self._path, self.manifest = checked_file(directory, MODEL_FILE)
        self.device = torch.device(device)
        self.counts = BatchCounts()
        self.graphs: CudaGraphs | None = None
        self.shared_weights: SharedWeights | None = None
        self._settings = settings
        self._gpu_settings = gpu_settings
        self._without_graphs = "not warmed up"
        self._vocabulary = _vocabulary(self.manifest)
        torch.set_num_threads(settings.intra_op_threads)
        gpu_dtype = None if self.device.type == "cpu" else gpu_settings.gpu_dtype
        self._model: torch.jit.ScriptModule
        self._load(gpu_dtype or self.manifest.dtype)
        self._positions = PositionNumbering(self._model.position_offset, self._model.pad_token_id)
        if self.device.type == "cpu":
            if settings.cpu_instances > 1:
                self._share_weights()
            self._model = freeze(self._model)

    def close(self) -> None:
        """Leave to others, or remove, what lies outside this process."""
        if self.shared_weights is not None:
            self.shared_weights.close()
            self.shared_weights = None

    def warm_up(self) -> CostModel:
        """Run the configured shapes, so that no user pays for what a first call costs.

        On a GPU the model's dtype is settled first (one that overflows in float16 is loaded in
        bfloat16), then the CUDA graphs are captured, through which the shapes run.

        Returns:
            What a forward costs, from the quickest of WARMUP_RUNS runs of each shape.

        Raises:
            InferenceError: A forward fails or gives values that are not finite.
        """
        if self.device.type == "cuda":
            self._warm_up_gpu()
        limit = self._vocabulary.max_tokens_per_text
        shapes = [(texts, min(tokens, limit)) for texts, tokens in self._settings.warmup_shapes]
        times_ms = []
        for shape in shapes:
            ones = np.ones(shape, dtype=np.int32)
            request = TokenRequest(ones, ones, np.zeros_like(ones))
            runs = []
            for _ in range(WARMUP_RUNS):
                started = time.perf_counter()
                (answer,) = self._rows_or_errors([pack_request(request, self._vocabulary)])
                runs.append(1e3 * (time.perf_counter() - started))
                if isinstance(answer, RequestError):
                    raise answer
            times_ms.append(min(runs))
        return CostModel.fit(shapes, times_ms)

    def describe(self) -> str:
        """In which dtype what runs where, for the log; true once warmed up."""
        if self.device.type == "cpu":
            # float16 has no fast form on any CPU that we know.
            is_widened = self._served_dtype == "float16" or (
                self._served_dtype == "bfloat16" and not HAS_FAST_BF16
            )
            computed = " computed in float32" if is_widened else ""
            shared = (
                ""
                if self.shared_weights is None
                else f", {self.shared_weights.size / MEGABYTE:.0f} MB of weights shared with others"
            )
            return f"{self._served_dtype}{computed} on cpu by {implementation('cpu')}{shared}"
        file = self.manifest.dtype
        exported = f" (exported in {file})" if self._served_dtype != file else ""
        graphs = (
            f"without CUDA graphs: {self._without_graphs}"
            if self.graphs is None
            else f"{len(self.graphs.shapes)} CUDA graphs holding "
            f"{self.graphs.memory_bytes / MEGABYTE:.0f} MB"
        )
        return (
            f"{self._served_dtype}{exported} on {self.device} by "
            f"{implementation(self.device.type)}, {graphs}"
        )

    def _load(self, dtype: str) -> None:
        """Make ``dtype`` that of the products; on a CPU the file has it already."""
        self._model = load(self._path, self.device, dtype)
        self._served_dtype = dtype

    def _share_weights(self) -> None:
        try:
            self.shared_weights = SharedWeights(self._model, default_directory())
        except (SharingError, OSError) as error:  # OSError: no directory for temporary files
            _log.warning("%s", error)

    def _warm_up_gpu(self) -> None:
        """Settle the dtype, then capture the graphs; again on a second call, as at the first."""
        self.graphs = None  # the old ones hold the weights' addresses
        batches = probe_batches(self._vocabulary)
        settle_dtype(self._served_dtype, self._load, self._run_eagerly, batches)
        cause = "off" if not self._gpu_settings.cuda_graphs else obstacle(self._model, self.device)
        if cause is not None:
            self._without_graphs = cause
            return
        graphs = CudaGraphs(
            self._model,
            self.device,
            self._vocabulary,
            self.manifest.embedding_size,
            self._gpu_settings.cuda_graph_megabytes,
        )
        graphs.capture()
        if graphs.shapes:
            self.graphs = graphs
        else:
            self._without_graphs = "none could be made"

    def embed(self, requests: Sequence[TokenRequest]) -> list[FloatArray | RequestError]:
        """Embed all requests in one packed batch, or a few where it would be too large.

        Returns:
            One entry a request, in order: [b, E] float32, or the error that is its own.
        """
        answers: list[FloatArray | RequestError] = []
        packed: dict[int, PackedRequest] = {}
        for index, request in enumerate(requests):
            try:
                packed[index] = pack_request(request, self._vocabulary)
                answers.append(_NO_ROWS)
            except InvalidInputError as error:
                answers.append(error)
        if not packed:
            return answers
        rows = self._rows_or_errors(list(packed.values()))
        lengths = [length for request in packed.values() for length in request.lengths]
        self.counts.add(len(lengths), sum(lengths), max(lengths))
        for index, answer in zip(packed, rows, strict=True):
            answers[index] = answer
        return answers

    def _rows_or_errors(self, requests: Sequence[PackedRequest]) -> list[FloatArray | RequestError]:
        try:
            rows = self._forward(requests)
        except Exception as error:  # the neighbours of what failed must get their answers
            if len(requests) > 1:
                _log.exception("a batch of %d requests failed; trying each alone", len(requests))
                return [self._rows_or_errors([request])[0] for request in requests]
            _log.exception("a request failed")
            return [InferenceError(f"the model failed on this request: {type(error).__name__}")]
        answers: list[FloatArray | RequestError] = []
        all_finite = bool(np.isfinite(rows).all())
        first = 0
        for request in requests:
            own = rows[first : first + len(request.lengths)]
            first += len(own)
            answers.append(own if all_finite or np.isfinite(own).all() else _not_finite(own))
        return answers

    def _forward(self, requests: Sequence[PackedRequest]) -> FloatArray:
        texts = join(requests)
        limit = self._settings.max_tokens_per_forward or (
            TOKENS_PER_CPU_FORWARD if self.device.type == "cpu" else TOKENS_PER_GPU_FORWARD
        )
        batches = split(texts, -(-len(texts.input_ids) // limit))
        rows = [self._forward_batch(batch) for batch in batches]
        return rows[0] if len(rows) == 1 else np.concatenate(rows)

    def _forward_batch(self, batch: PackedBatch) -> FloatArray:
        """[B, E] float32."""
        rows = None if self.graphs is None else self.graphs.run(batch)
        return self._run_eagerly(batch) if rows is None else rows

    def _run_eagerly(self, batch: PackedBatch) -> FloatArray:
        with torch.inference_mode(), no_profiling():
            position_ids = self._positions.of(batch)
            arrays = (batch.input_ids, batch.token_type_ids, position_ids, batch.cu_seqlens)
            tensors = [torch.from_numpy(array) for array in arrays]
            if self.device.type == "cuda":
                tensors = [tensor.to(self.device) for tensor in tensors]
            embedding = self._model.forward_positions(*tensors, batch.max_seqlen)
            rows: FloatArray = embedding.cpu().numpy()
            return rows


_NO_ROWS: FloatArray = np.empty((0, 0), dtype=np.float32)


def _not_finite(rows: FloatArray) -> InferenceError:
    text = int((~np.isfinite(rows)).any(axis=1).argmax())
    return InferenceError(f"the model's embedding of text {text} is not finite")


def _vocabulary(manifest: Manifest) -> Vocabulary:
    return Vocabulary(
        vocab_size=manifest.vocab_size,
        type_vocab_size=manifest.type_vocab_size,
        max_tokens_per_text=manifest.limits.max_tokens_per_text,
    )
