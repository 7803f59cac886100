"""Which graphs are made, what they are given, what becomes of failures: over a stand-in for CUDA.

On a real GPU: tests/gpu/test_graphs.py.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from bertron_backend import cuda_graphs
from bertron_backend.buckets import BUCKETS, longest_by_class
from bertron_backend.cuda_graphs import MEGABYTE, CudaGraphs, obstacle
from bertron_backend.packing import PackedRequest, Vocabulary, split
from bertron_backend.probe import random_batch
from fake_cuda import FakeCuda, FakeModel, FakeTorch
from hypothesis import given, settings
from hypothesis import strategies as st

VOCABULARY = Vocabulary(vocab_size=100, type_vocab_size=2, max_tokens_per_text=300)


@pytest.fixture
def cuda(monkeypatch):
    cuda = FakeCuda()
    monkeypatch.setattr(cuda_graphs, "torch", FakeTorch(cuda))
    return cuda


def captured(cuda, limit_megabytes=1024, vocabulary=VOCABULARY):
    graphs = CudaGraphs(FakeModel(cuda), torch.device("cpu"), vocabulary, 4, limit_megabytes)
    cuda.owner = graphs
    graphs.capture()
    return graphs


@pytest.fixture(scope="module")
def graphs():
    with pytest.MonkeyPatch.context() as monkeypatch:
        cuda = FakeCuda()
        monkeypatch.setattr(cuda_graphs, "torch", FakeTorch(cuda))
        yield captured(cuda)


def batch_of(lengths, seed=0):
    generator = np.random.default_rng(seed)
    ids, types = generator.integers(0, 100, (2, sum(lengths)), dtype=np.int32)
    (batch,) = split(PackedRequest(ids, types, list(lengths)), 1)
    return batch


def answers_of(batch):
    lengths = np.diff(batch.cu_seqlens)
    positions = np.concatenate([np.arange(length) for length in lengths])
    arrays = (batch.input_ids, batch.token_type_ids, positions)
    sums = [np.add.reduceat(array, batch.cu_seqlens[:-1]) for array in arrays]
    return np.stack([*sums, lengths], axis=1).astype(np.float32)


def test_every_bucket_is_captured_for_every_class_largest_first(cuda):
    graphs = captured(cuda)
    assert len(graphs.shapes) == 1 + 1 + 2 + 3 + 6 * 4
    assert cuda.captured[:4] == [(8192, 300), (8192, 128), (8192, 64), (8192, 32)]
    assert cuda.captured[-4:] == [(64, 64), (64, 32), (32, 32), (16, 16)]
    assert len(cuda._pools) == 1
    assert graphs.memory_bytes == 8 * MEGABYTE


def test_a_model_of_long_texts_has_its_own_limit_in_the_last_class(cuda):
    captured(cuda, vocabulary=Vocabulary(100, 2, max_tokens_per_text=1000))
    assert {bound for tokens, bound in cuda.captured if tokens > 1000} == {32, 64, 128, 1000}


@pytest.mark.parametrize("bucket", BUCKETS)
def test_a_bucket_full_of_tokens_and_one_full_of_texts(graphs, bucket):
    for longest in longest_by_class(bucket.tokens, 300).values():
        whole, rest = divmod(bucket.tokens, longest)
        full = batch_of([longest] * whole + [rest] * (rest > 0))
        np.testing.assert_array_equal(graphs.run(full), answers_of(full))
    many = batch_of([1] * (bucket.texts - 1) + [min(bucket.tokens // 2, 300)])
    np.testing.assert_array_equal(graphs.run(many), answers_of(many))


@settings(deadline=None)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=20), st.integers(0, 5))
def test_each_text_gets_its_own_row_in_order(graphs, lengths, seed):
    batch = batch_of(lengths, seed)
    np.testing.assert_array_equal(graphs.run(batch), answers_of(batch))


def test_rows_are_the_callers_own_and_not_the_buffer(graphs):
    first, second = batch_of([5, 7], seed=1), batch_of([5, 7], seed=2)
    rows = graphs.run(first)
    graphs.run(second)
    np.testing.assert_array_equal(rows, answers_of(first))


def test_what_no_bucket_holds_is_left_to_others(graphs):
    assert graphs.run(batch_of([300] * 27 + [93])) is None  # 8193 tokens
    assert graphs.run(batch_of([1] * 1025)) is None


def test_concurrent_callers_get_their_own_answers(cuda):
    graphs = captured(cuda)
    cuda.replay_s = 0.001
    batches = [batch_of([3 + seed % 40, 9], seed) for seed in range(60)]
    with ThreadPoolExecutor(6) as pool:
        for batch, rows in zip(batches, pool.map(graphs.run, batches), strict=True):
            np.testing.assert_array_equal(rows, answers_of(batch))


def test_buckets_beyond_the_memory_run_eagerly_with_a_warning(cuda, caplog):
    graphs = captured(cuda, limit_megabytes=3)
    assert max(tokens for tokens, _ in graphs.shapes) == 2048
    assert graphs.memory_bytes == 2 * MEGABYTE
    assert graphs.run(batch_of([300] * 8)) is None
    assert graphs.run(batch_of([300] * 6)) is not None
    warnings = [record.getMessage() for record in caplog.records]
    assert [warning.split(" need")[0] for warning in warnings] == [
        "CUDA graphs of 8192 tokens",
        "CUDA graphs of 4096 tokens",
    ]
    assert "cuda_graph_megabytes" in warnings[0]


def test_capturing_ends_where_the_memory_does(cuda, caplog):
    cuda.leaked_megabytes = 1
    graphs = captured(cuda, limit_megabytes=14)
    assert graphs.shapes == (
        (8192, 512),
        (8192, 128),
        (8192, 64),
        (8192, 32),
        (4096, 512),
        (4096, 128),
    )
    assert "4096 tokens need more than 14 MB" in caplog.text
    assert "and so do smaller ones" in caplog.text
    assert graphs.run(batch_of([5])) is None


def test_a_limit_below_everything_leaves_no_graph(cuda):
    cuda.megabytes = lambda _tokens: 50
    graphs = captured(cuda, limit_megabytes=10)
    assert graphs.shapes == ()
    assert graphs.memory_bytes == 0
    assert graphs.run(batch_of([5])) is None


def test_a_capture_that_fails_leaves_no_graph_and_a_warning(cuda, caplog):
    cuda.failing_tokens = {256}
    graphs = captured(cuda)
    assert cuda.captured  # some went well before
    assert graphs.shapes == ()
    assert graphs.run(batch_of([5])) is None
    assert graphs.run(batch_of([300] * 20)) is None
    assert "every batch runs eagerly" in caplog.text
    assert "not permitted when stream is capturing" in caplog.text


def test_a_replay_that_writes_nothing_is_never_used(cuda, caplog):
    cuda.broken = True
    graphs = captured(cuda)
    assert graphs.shapes == ()
    assert "gives other embeddings than the same kernels without it" in caplog.text


def test_the_trial_batches_leave_padding_to_be_tried():
    for bucket in BUCKETS:
        for limit in (3, 100, 512, 8192):
            for longest in longest_by_class(bucket.tokens, limit).values():
                batch = random_batch(cuda_graphs._lengths(bucket, longest), VOCABULARY)
                assert 0 < batch.cu_seqlens[-1] < bucket.tokens
                assert 0 < len(batch.cu_seqlens) - 1 < bucket.texts
                assert batch.max_seqlen <= longest


class OlderModel(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class NewerModel(OlderModel):
    @torch.jit.export
    def forward_positions(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_what_stands_in_the_way_is_named(monkeypatch):
    older, newer = (torch.jit.script(model()) for model in (OlderModel, NewerModel))
    gpu = torch.device("cuda:0")
    monkeypatch.setattr(cuda_graphs, "implementation", lambda _device: "triton")
    assert obstacle(newer, gpu) is None
    assert "export` again" in obstacle(older, gpu)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert "ROCm" in obstacle(newer, gpu)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(cuda_graphs, "implementation", lambda _device: "eager")
    assert "on the host" in obstacle(newer, gpu)
