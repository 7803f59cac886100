"""The packed forward replayed from CUDA graphs, one for each bucket and length class.

A forward of a small batch is mostly launches: dozens of kernels of a few microseconds each, that
Python starts one by one. A graph starts them all at once. docs/decisions/0011 says what is padded
for it.
"""

from __future__ import annotations

import logging
import threading
import traceback

import numpy as np
import numpy.typing as npt
import torch
from bertron_kernels import implementation
from bertron_kernels.attention import length_class
from bertron_torchscript.model_file import no_profiling

from bertron_backend.buckets import BUCKETS, Bucket, bucket_for, longest_by_class
from bertron_backend.packing import PackedBatch, Vocabulary
from bertron_backend.position_ids import PositionNumbering
from bertron_backend.probe import random_batch

FloatArray = npt.NDArray[np.float32]
MEGABYTE = 2**20
# Before each capture: the first run compiles and loads kernels and makes cuBLAS's workspace, none
# of which a capture may do. The second is PyTorch's advice, for what is set up late.
WARM_UP_RUNS = 2
# A replay repeats the very kernels that it is compared with. Rounding is no reason to differ by
# more than this, relative to the norm; a wrong buffer or a missing launch differs by all of it.
SAME = 1e-2
_log = logging.getLogger(__name__)


def obstacle(model: torch.nn.Module, device: torch.device) -> str | None:
    """Why graphs cannot be made of this model on this device, in a few words; None if they can."""
    if torch.version.hip is not None:
        return "they are not tried on ROCm"
    if implementation(device.type) != "triton":
        return "PyTorch's own operators read lengths on the host"
    if not hasattr(model, "forward_positions"):
        return "model.pt is from an older export; run `bertron export` again"
    return None


class CudaGraphs:
    """The graphs of one model on one device; until :meth:`capture` there are none.

    Args:
        model: What :func:`bertron_torchscript.model_file.load` gave, in its final dtype and place:
            graphs hold its weights' addresses.
        device: A CUDA device.
        vocabulary: What the model takes.
        embedding_size: Of the model's output.
        limit_megabytes: Of PyTorch's memory that graphs may hold, in units of 2^20 bytes.

    Attributes:
        memory_bytes: Of PyTorch's memory that graphs hold: their shared pool, buffers and cuBLAS's
            workspace. The driver's own for each graph is not in it.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        device: torch.device,
        vocabulary: Vocabulary,
        embedding_size: int,
        limit_megabytes: int,
    ) -> None:
        self.memory_bytes = 0
        self._model = model
        self._device = device
        self._vocabulary = vocabulary
        self._embedding_size = embedding_size
        self._limit_bytes = limit_megabytes * MEGABYTE
        self._positions = PositionNumbering(model.position_offset, model.pad_token_id)  # type: ignore[arg-type]
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self._lock = threading.Lock()  # one batch at a time has the buffers

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """(tokens, length class) of every graph there is."""
        return tuple(self._graphs)

    def capture(self) -> None:
        """Capture every bucket and length class, the largest first, until the memory is used up.

        Never raises because of a capture: where one fails or its replay gives other rows, there
        are no graphs afterwards, and a warning says so.
        """
        with self._lock, torch.cuda.device(self._device):
            free_before, _ = torch.cuda.mem_get_info(self._device)
            self._reserved_before = _reserved(self._device)
            failure = None
            try:
                with torch.inference_mode(), no_profiling():
                    self._capture_all()
            except Exception:
                self._graphs.clear()
                failure = traceback.format_exc()  # text alone: the error's frames hold memory
            self.memory_bytes = self._taken()
            free_after, _ = torch.cuda.mem_get_info(self._device)
        if failure:
            _log.warning("CUDA graphs could not be made; every batch runs eagerly\n%s", failure)
        _log.info(
            "%d CUDA graphs hold %.0f MB of PyTorch's memory; the device has %.0f MB less",
            len(self._graphs),
            self.memory_bytes / MEGABYTE,
            (free_before - free_after) / MEGABYTE,
        )

    def run(self, batch: PackedBatch) -> FloatArray | None:
        """[B, E], or None where no graph holds the batch; any thread may call."""
        texts = len(batch.cu_seqlens) - 1
        bucket = bucket_for(len(batch.input_ids), texts)
        if bucket is None:
            return None
        graph = self._graphs.get((bucket.tokens, length_class(batch.max_seqlen)))
        if graph is None:
            return None
        position_ids = self._positions.of(batch)
        with self._lock, torch.inference_mode():
            bucket.fill(self._host_input.numpy(), batch, position_ids)
            return self._replay(graph, bucket, texts)

    def _replay(self, graph: torch.cuda.CUDAGraph, bucket: Bucket, texts: int) -> FloatArray:
        """What ``graph`` gives for what lies in the host's buffer."""
        with torch.cuda.stream(self._stream):
            self._copy_in(bucket)
            graph.replay()
            self._host_output[:texts].copy_(self._device_output[:texts], non_blocking=True)
        self._stream.synchronize()  # from here on the next batch may have the buffers
        rows: FloatArray = self._host_output[:texts].numpy().copy()
        return rows

    def _copy_in(self, bucket: Bucket) -> None:
        used = slice(bucket.size)
        self._device_input[used].copy_(self._host_input[used], non_blocking=True)

    def _capture_all(self) -> None:
        self._make_buffers()
        self._pool = torch.cuda.graph_pool_handle()
        for bucket in reversed(BUCKETS):  # what the largest needs is enough for all that follow
            if self._capture_bucket(bucket):
                continue
            _log.warning(
                "CUDA graphs of %d tokens need more than %.0f MB (cuda_graph_megabytes); batches "
                "of that size run eagerly%s",
                bucket.tokens,
                self._limit_bytes / MEGABYTE,
                ", and so do smaller ones" if self._graphs else "",
            )
            if self._graphs:
                return
            self._pool = torch.cuda.graph_pool_handle()  # the other one went with its only graph

    def _make_buffers(self) -> None:
        largest = BUCKETS[-1]
        rows = (largest.texts, self._embedding_size)
        # Pinned: a copy from or to pageable memory makes the host wait for it.
        self._host_input = torch.zeros(largest.size, dtype=torch.int32, pin_memory=True)
        self._host_output = torch.zeros(rows, dtype=torch.float32, pin_memory=True)
        self._device_input = torch.zeros(largest.size, dtype=torch.int32, device=self._device)
        self._device_output = torch.zeros(rows, dtype=torch.float32, device=self._device)
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        # The weights and the buffers were written on the current stream.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def _capture_bucket(self, bucket: Bucket) -> bool:
        """Every length class of ``bucket``; False where the memory is beyond the limit."""
        classes = longest_by_class(bucket.tokens, self._vocabulary.max_tokens_per_text)
        for name, max_seqlen in reversed(classes.items()):
            graph = self._captured(bucket, max_seqlen)
            if self._taken() > self._limit_bytes:
                graph.reset()
                return False
            self._graphs[bucket.tokens, name] = graph
        return True

    def _captured(self, bucket: Bucket, max_seqlen: int) -> torch.cuda.CUDAGraph:
        """One graph, its replay compared with the run that it was made from."""
        batch = random_batch(_lengths(bucket, max_seqlen), self._vocabulary)
        texts = len(batch.cu_seqlens) - 1
        bucket.fill(self._host_input.numpy(), batch, self._positions.of(batch))
        inputs = bucket.sections(self._device_input)
        output = self._device_output[: bucket.texts]
        forward = self._model.forward_positions
        with torch.cuda.stream(self._stream):
            self._copy_in(bucket)
            for _ in range(WARM_UP_RUNS):
                eager = forward(*inputs, max_seqlen)  # type: ignore[operator]
            expected = eager[:texts].cpu().numpy()
            del eager
            graph = torch.cuda.CUDAGraph()
            # Other threads' calls are none of the capture's business: only this one's count.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                output.copy_(forward(*inputs, max_seqlen))  # type: ignore[operator]
            output.fill_(torch.nan)  # what the replay does not write must not look right
        rows = self._replay(graph, bucket, texts)
        if not np.linalg.norm(rows - expected) <= SAME * np.linalg.norm(expected):
            raise RuntimeError(
                f"the graph of {bucket.tokens} tokens, texts of at most {max_seqlen}, gives other "
                "embeddings than the same kernels without it"
            )
        return graph

    def _taken(self) -> int:
        """Bytes that PyTorch holds more than before the first capture."""
        return _reserved(self._device) - self._reserved_before


def _lengths(bucket: Bucket, max_seqlen: int) -> list[int]:
    """Texts that fill a bucket but for one token: padding is part of what is tried."""
    whole, rest = divmod(bucket.tokens - 1, max_seqlen)
    lengths = [max_seqlen] * whole + [rest] * (rest > 0)
    return lengths[: bucket.texts - 1]


def _reserved(device: torch.device) -> int:
    """Bytes that PyTorch has from the driver and cannot give back."""
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved(device)
