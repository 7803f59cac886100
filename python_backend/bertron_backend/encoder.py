"""The exported model with its weights in memory: packed batches in, embeddings out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from bertron_torchscript.manifest import Manifest, checked_file
from bertron_torchscript.model_file import MODEL_FILE, load, no_profiling

from bertron_backend.errors import InferenceError, InvalidInputError, RequestError
from bertron_backend.packing import (
    PackedBatch,
    PackedRequest,
    TokenRequest,
    Vocabulary,
    pack_request,
    split_batches,
)
from bertron_backend.settings import EncoderSettings

FloatArray = npt.NDArray[np.float32]
_log = logging.getLogger(__name__)


class Encoder:
    """One copy of the model on one device.

    Args:
        directory: Where ``model.pt`` and its manifest lie.
        device: ``cpu`` or ``cuda:N``.
        settings: The model's parameters.

    Raises:
        ManifestError: The file is not what the export wrote.
    """

    def __init__(self, directory: Path, device: str, settings: EncoderSettings) -> None:
        path, self.manifest = checked_file(directory, MODEL_FILE)
        self.device = torch.device(device)
        self._settings = settings
        self._vocabulary = _vocabulary(self.manifest)
        torch.set_num_threads(settings.intra_op_threads)
        self._model = load(path, self.device)

    def warm_up(self) -> None:
        """Run the configured shapes once, so that no user pays for what a first call costs.

        Raises:
            InferenceError: A forward fails or gives values that are not finite.
        """
        limit = self._vocabulary.max_tokens_per_text
        for texts, tokens in self._settings.warmup_shapes:
            ones = np.ones((texts, min(tokens, limit)), dtype=np.int32)
            request = TokenRequest(ones, ones, np.zeros_like(ones))
            (answer,) = self.embed([request])
            if isinstance(answer, RequestError):
                raise answer

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
        first = 0
        for request in requests:
            own = rows[first : first + len(request.lengths)]
            first += len(own)
            answers.append(own if np.isfinite(own).all() else _not_finite(own))
        return answers

    def _forward(self, requests: Sequence[PackedRequest]) -> FloatArray:
        batches = split_batches(requests, self._settings.max_tokens_per_forward)
        parts = [self._forward_batch(batch) for batch, _texts in batches]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _forward_batch(self, batch: PackedBatch) -> FloatArray:
        """[B, E] float32."""
        with torch.inference_mode(), no_profiling():
            arrays = (batch.input_ids, batch.token_type_ids, batch.cu_seqlens)
            tensors = [torch.from_numpy(array).to(self.device) for array in arrays]
            embedding = self._model.forward_packed(*tensors, batch.max_seqlen)
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
