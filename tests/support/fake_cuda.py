"""A stand-in for PyTorch's CUDA graphs, streams and memory, in which captured work runs on the CPU.

It keeps what graphs are used by: a capture computes nothing, a replay reads the inputs and writes
the output that it was captured with, and a pool is as large as the largest graph in it. What a GPU
does is in tests/gpu.
"""

import contextlib
import time

import torch
import torch.nn.functional as F

MEGABYTE = 2**20


class FakeModel:
    """Sums ids, types and positions over each text, and counts its tokens: [B, 4]."""

    position_offset = 0
    pad_token_id = 0

    def __init__(self, cuda):
        self._cuda = cuda

    def forward_positions(self, input_ids, token_type_ids, position_ids, cu_seqlens, max_seqlen):
        inputs = (input_ids, token_type_ids, position_ids, cu_seqlens)
        rows = len(cu_seqlens) - 1
        graph = self._cuda.capturing
        if graph is None:
            return self.compute(*inputs, max_seqlen)
        if len(input_ids) in self._cuda.failing_tokens:
            raise RuntimeError("operation not permitted when stream is capturing")
        graph.work = (inputs, max_seqlen)
        graph.tokens = len(input_ids)
        return torch.zeros(rows, 4)

    @staticmethod
    def compute(*inputs_and_length):
        *of_tokens, cu_seqlens, max_seqlen = inputs_and_length
        ends = cu_seqlens.long()
        lengths = ends.diff()
        before = [F.pad(x.long().cumsum(0), [1, 0]) for x in of_tokens]
        rows = torch.stack([*[x[ends].diff() for x in before], lengths], 1).float()
        rows[lengths > max_seqlen] = torch.nan  # such queries would be left unwritten
        return rows


class FakeCuda:
    """``torch.cuda``, as far as graphs need it.

    Attributes:
        owner: The graphs under test, whose output buffer a replay writes.
        captured: (tokens, length bound) of every capture, in order.
        failing_tokens: Buckets whose capture fails.
        broken: Replays that do nothing.
        megabytes: Of a pool, from the tokens of the largest graph in it.
        leaked_megabytes: That each capture takes besides.
    """

    def __init__(self):
        self.owner = None
        self.capturing = None
        self.captured = []
        self.failing_tokens = set()
        self.broken = False
        self.megabytes = lambda tokens: tokens / 1024
        self.leaked_megabytes = 0
        self.replay_s = 0.0
        self._pools = []
        self._live = []
        cuda = self

        class CUDAGraph:
            work = None
            tokens = 0
            pool = None

            def replay(self):
                time.sleep(cuda.replay_s)
                if not cuda.broken:
                    inputs, max_seqlen = self.work
                    rows = FakeModel.compute(*inputs, max_seqlen)
                    cuda.owner._device_output[: len(rows)].copy_(rows)

            def reset(self):
                cuda._live.remove(self)

        self.CUDAGraph = CUDAGraph

    @contextlib.contextmanager
    def graph(self, graph, *, pool, stream, capture_error_mode):
        assert stream is self.owner._stream
        assert pool == self._pools[-1]
        assert capture_error_mode == "thread_local"
        self.capturing = graph
        try:
            yield
        finally:
            self.capturing = None
        graph.pool = pool
        self.captured.append((graph.tokens, graph.work[1]))
        self._live.append(graph)

    def graph_pool_handle(self):
        self._pools.append((0, len(self._pools)))
        return self._pools[-1]

    def memory_reserved(self, _device):
        largest = {}
        for graph in self._live:
            largest[graph.pool] = max(largest.get(graph.pool, 0), graph.tokens)
        pools = sum(map(self.megabytes, largest.values()))
        return int(MEGABYTE * (100 + pools + self.leaked_megabytes * len(self.captured)))

    class Stream:
        def __init__(self, _device):
            pass

        def wait_stream(self, _other):
            pass

        def synchronize(self):
            pass

    def stream(self, _stream):
        return contextlib.nullcontext()

    device = stream

    def current_stream(self, _device):
        return None

    def mem_get_info(self, _device):
        return 10**10, 10**11

    def empty_cache(self):
        pass


class FakeTorch:
    """``torch`` with the stand-in; there is no memory to pin."""

    def __init__(self, cuda):
        self.cuda = cuda

    def __getattr__(self, name):
        return getattr(torch, name)

    def zeros(self, *arguments, pin_memory=False, **options):
        assert pin_memory != ("device" in options)  # the host's are pinned
        return torch.zeros(*arguments, **options)
