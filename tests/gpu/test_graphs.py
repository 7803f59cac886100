"""CUDA graphs of a real model: replays against the eager forward, memory, and what can go wrong."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from bertron_backend.buckets import BUCKETS, longest_by_class
from bertron_backend.cuda_graphs import MEGABYTE, CudaGraphs
from bertron_backend.encoder import Encoder
from bertron_backend.packing import PackedBatch, PackedRequest, TokenRequest, Vocabulary, split
from bertron_backend.settings import EncoderSettings, GpuSettings
from bertron_kernels import implementation
from bertron_torchscript.export import export
from overflowing_checkpoint import make_overflowing_checkpoint
from tiny_checkpoints import make_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(torch.version.hip is not None, reason="graphs are not tried on ROCm"),
    pytest.mark.skipif(
        implementation("cuda") != "triton", reason="graphs need the Triton-language kernels"
    ),
]

DEVICE = "cuda:0"
SETTINGS = EncoderSettings(((1, 8), (8, 128)), max_tokens_per_forward=0, intra_op_threads=1)
# Beyond 512: the last length class has no bound of its own.
LIMIT = 600
VOCABULARY = Vocabulary(vocab_size=400, type_vocab_size=1, max_tokens_per_text=LIMIT)
# The smallest cosine between a replay and the eager forward: the shape of a product, which padding
# changes, changes its rounding.
GATES = {"float32": 0.99999, "float16": 0.9999, "bfloat16": 0.999}
MODELS = (("bert", "float16"), ("bert", "float32"), ("bert", "bfloat16"), ("roberta", "float16"))


def exported(directory: Path, source: Path, dtype: str | None, **options) -> Path:
    export(str(source), directory, dtype=dtype, tokenizer="file", **options)
    return directory / "bert" / "1"


def sizes(architecture: str) -> dict[str, int]:
    # RoBERTa's table has two rows before the first position.
    return {"max_position_embeddings": LIMIT + 2 * (architecture == "roberta")}


@pytest.fixture(scope="module", params=MODELS, ids=["-".join(model) for model in MODELS])
def encoder(request, tmp_path_factory):
    architecture, dtype = request.param
    directory = tmp_path_factory.mktemp("model")
    source = make_checkpoint(directory / "source", architecture, **sizes(architecture))
    encoder = Encoder(exported(directory / "models", source, dtype), DEVICE, SETTINGS)
    encoder.warm_up()
    return encoder


@pytest.fixture(scope="module")
def float16(tmp_path_factory):
    directory = tmp_path_factory.mktemp("float16")
    source = make_checkpoint(directory / "source", **sizes("bert"))
    return exported(directory / "models", source, "float16")


def batch_of(lengths, seed=0) -> PackedBatch:
    ids = np.random.default_rng(seed).integers(0, 400, sum(lengths), dtype=np.int32)
    texts = PackedRequest(ids, np.zeros_like(ids), list(lengths))
    (batch,) = split(texts, 1)
    return batch


def random_lengths(generator, tokens, texts, longest):
    """Of a mixed batch: within a bucket, one text of the longest, and room left over or not."""
    lengths = [longest]
    while len(lengths) < texts and sum(lengths) < tokens:
        lengths.append(int(generator.integers(1, min(longest, tokens - sum(lengths)) + 1)))
    generator.shuffle(lengths)
    return lengths


def assert_same(found, expected, gate):
    assert found.shape == expected.shape
    assert np.isfinite(found).all()
    cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1)
    cosine /= np.linalg.norm(expected, axis=1)
    assert cosine.min() >= gate, f"text {cosine.argmin()} has cosine {cosine.min():.7f}"


def assert_replayed(encoder, batch):
    rows = encoder.graphs.run(batch)
    assert rows is not None, "no graph holds the batch"
    assert_same(rows, encoder._run_eagerly(batch), GATES[encoder.manifest.dtype])


def test_every_graph_was_captured(encoder):
    expected = {(b.tokens, name) for b in BUCKETS for name in longest_by_class(b.tokens, LIMIT)}
    assert set(encoder.graphs.shapes) == expected
    assert f"{len(expected)} CUDA graphs holding" in encoder.describe()
    assert encoder.describe().startswith(f"{encoder.manifest.dtype} on cuda:0 by triton")


@pytest.mark.parametrize("bucket", BUCKETS, ids=lambda bucket: bucket.tokens)
def test_a_replay_equals_the_eager_forward(encoder, bucket):
    generator = np.random.default_rng(bucket.tokens)
    for longest in longest_by_class(bucket.tokens, LIMIT).values():
        for tokens in (bucket.tokens, max(longest, bucket.tokens // 2 + 1)):
            lengths = random_lengths(generator, tokens, bucket.texts, longest)
            assert_replayed(encoder, batch_of(lengths, seed=tokens))


@pytest.mark.parametrize("bucket", BUCKETS, ids=lambda bucket: bucket.tokens)
def test_a_bucket_full_of_tokens_and_one_full_of_texts(encoder, bucket):
    for longest in longest_by_class(bucket.tokens, LIMIT).values():
        whole, rest = divmod(bucket.tokens, longest)
        assert_replayed(encoder, batch_of([longest] * whole + [rest] * (rest > 0)))
    assert_replayed(encoder, batch_of([1] * (bucket.texts - 1) + [min(bucket.tokens // 2, LIMIT)]))


def test_what_a_batch_leaves_in_the_buffers_is_not_in_the_next(encoder):
    small = batch_of([3, 5], seed=1)
    alone = encoder.graphs.run(small)
    for lengths in ([16], [600] * 13, [1] * 1024, [31, 1]):
        encoder.graphs.run(batch_of(lengths, seed=2))
        # The same graph on the same input: the same bits.
        np.testing.assert_array_equal(encoder.graphs.run(small), alone)


def test_too_large_a_batch_runs_eagerly(encoder):
    for lengths in ([LIMIT] * 14, [1] * 1025):
        batch = batch_of(lengths)
        assert encoder.graphs.run(batch) is None
        assert_same(
            encoder._forward_batch(batch),
            np.concatenate([encoder._forward_batch(batch_alone) for batch_alone in alone(batch)]),
            GATES[encoder.manifest.dtype],
        )


def alone(batch):
    """Its texts in ten batches."""
    lengths = np.diff(batch.cu_seqlens).tolist()
    return split(PackedRequest(batch.input_ids, batch.token_type_ids, lengths), 10)


def test_concurrent_callers_get_their_own_answers(encoder):
    generator = np.random.default_rng(0)
    batches = [
        batch_of(random_lengths(generator, 1 + 40 * n, 50, min(1 + 40 * n, LIMIT)), seed=n)
        for n in range(1, 50)
    ]
    expected = [encoder.graphs.run(batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            for rows, own in zip(pool.map(encoder.graphs.run, batches), expected, strict=True):
                np.testing.assert_array_equal(rows, own)


def test_requests_of_any_length_are_answered_in_order(encoder):
    requests = []
    for n, lengths in enumerate([(3, 600, 1), (17,), (64, 65), (129, 2, 2, 33)]):
        mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int32)
        ids = np.random.default_rng(n).integers(0, 400, mask.shape, dtype=np.int32)
        requests.append(TokenRequest(ids, mask, np.zeros_like(ids)))
    for request, rows in zip(requests, encoder.embed(requests), strict=True):
        (own,) = encoder.embed([request])
        assert_same(rows, own, GATES[encoder.manifest.dtype])


def test_memory_is_reported_and_within_the_limit(encoder):
    assert 0 < encoder.graphs.memory_bytes <= GpuSettings().cuda_graph_megabytes * MEGABYTE
    assert f"holding {encoder.graphs.memory_bytes / MEGABYTE:.0f} MB" in encoder.describe()


def test_without_the_memory_all_is_served_eagerly(float16, caplog):
    encoder = Encoder(float16, DEVICE, SETTINGS, GpuSettings(cuda_graph_megabytes=1))
    encoder.warm_up()
    assert encoder.graphs is None
    assert "need more than 1 MB (cuda_graph_megabytes)" in caplog.text
    assert encoder.describe().endswith("without CUDA graphs: none could be made")
    assert np.isfinite(encoder._forward_batch(batch_of([5, 600]))).all()


def test_graphs_can_be_turned_off(float16):
    encoder = Encoder(float16, DEVICE, SETTINGS, GpuSettings(cuda_graphs=False))
    encoder.warm_up()
    assert encoder.graphs is None
    assert encoder.describe().endswith("without CUDA graphs: off")
    assert np.isfinite(encoder._forward_batch(batch_of([5, 600]))).all()


class WaitsForTheGpu(torch.nn.Module):
    """A model that no graph can be made of."""

    def __init__(self, model):
        super().__init__()
        self.position_offset = model.position_offset
        self.pad_token_id = model.pad_token_id
        self._model = model

    def forward_positions(self, input_ids, token_types, positions, cu_seqlens, max_seqlen):
        cu_seqlens[-1].item()
        return self._model.forward_positions(
            input_ids, token_types, positions, cu_seqlens, max_seqlen
        )


def test_a_capture_that_fails_leaves_everything_else_as_it_was(float16, caplog):
    encoder = Encoder(float16, DEVICE, SETTINGS)
    encoder.warm_up()
    batch = batch_of([5, 600, 31])
    eager, replayed = encoder._run_eagerly(batch), encoder.graphs.run(batch)
    failing = CudaGraphs(
        WaitsForTheGpu(encoder._model), encoder.device, VOCABULARY, eager.shape[1], 1024
    )
    failing.capture()
    assert failing.shapes == ()
    assert failing.run(batch) is None
    assert "every batch runs eagerly" in caplog.text
    np.testing.assert_array_equal(encoder._run_eagerly(batch), eager)
    np.testing.assert_array_equal(encoder.graphs.run(batch), replayed)
    again = CudaGraphs(encoder._model, encoder.device, VOCABULARY, eager.shape[1], 1024)
    again.capture()
    np.testing.assert_array_equal(again.run(batch), replayed)


def test_a_model_that_overflows_in_float16_is_served_in_bfloat16(tmp_path, caplog):
    source = make_overflowing_checkpoint(tmp_path / "source", **sizes("bert"))
    encoders = {
        dtype: Encoder(exported(tmp_path / dtype, source, dtype), DEVICE, SETTINGS)
        for dtype in ("float16", "float32")
    }
    batch = batch_of([5, 600, 31])
    assert not np.isfinite(encoders["float16"]._run_eagerly(batch)).all()
    for encoder in encoders.values():
        encoder.warm_up()
    assert "float16 overflows in this model" in caplog.text
    assert encoders["float16"].describe().startswith("bfloat16 (exported in float16) on cuda:0")
    assert encoders["float32"].describe().startswith("float32 on cuda:0")
    exact = encoders["float32"]._forward_batch(batch)
    rows = encoders["float16"].graphs.run(batch)
    assert_same(rows, exact, GATES["bfloat16"])
    assert_same(rows, encoders["float16"]._run_eagerly(batch), GATES["bfloat16"])


def test_a_float32_file_is_served_in_the_configurations_dtype(tmp_path):
    source = make_checkpoint(tmp_path / "source", **sizes("bert"))
    file = exported(tmp_path / "models", source, None)
    batch = batch_of([5, 600, 31])
    rows = {}
    for dtype in ("float32", "float16", "bfloat16"):
        encoder = Encoder(file, DEVICE, SETTINGS, GpuSettings(gpu_dtype=dtype))
        encoder.warm_up()
        rows[dtype] = encoder.graphs.run(batch)
        words = dtype if dtype == "float32" else f"{dtype} (exported in float32)"
        assert encoder.describe().startswith(f"{words} on cuda:0 by triton")
    for dtype in ("float16", "bfloat16"):
        assert_same(rows[dtype], rows["float32"], GATES[dtype])
        assert not np.array_equal(rows[dtype], rows["float32"])


def test_nothing_is_compiled_after_the_warm_up(float16):
    """In a process of its own, where nothing has been compiled before."""
    script = Path(__file__).with_name("compiled_kernels.py")
    process = subprocess.run(
        [sys.executable, script, float16, DEVICE],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    assert found["at warm-up"], "the hook was never called"
    assert found["after it"] == []
