"""Kernels that start before the one ahead has ended: the same bits as one after the other."""

import numpy as np
import pytest
import torch
from bertron_backend.buckets import BUCKETS
from bertron_backend.encoder import Encoder
from bertron_backend.packing import PackedBatch, PackedRequest, split
from bertron_backend.settings import EncoderSettings
from bertron_kernels import gpu_linear, implementation, overlap
from bertron_kernels.gemm import BIAS, GELU, PARTIALS, GemmTile
from bertron_kernels.launch import capability
from bertron_torchscript.export import export
from tiny_checkpoints import make_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(
        implementation("cuda") != "triton", reason="only the Triton-language kernels overlap"
    ),
    pytest.mark.skipif(
        torch.cuda.is_available()
        and capability(torch.cuda.current_device()) < overlap.FIRST_WITH_OVERLAP,
        reason=f"needs sm_{overlap.FIRST_WITH_OVERLAP}",
    ),
]

SETTINGS = EncoderSettings(((1, 8), (8, 128)), max_tokens_per_forward=0, intra_op_threads=1)
HIDDEN, INTERMEDIATE, HEADS, LAYERS = 256, 1024, 4, 4
SIZES = {
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": 512,
}
TILE = GemmTile(16, 64, 64, num_warps=4, num_stages=4)
SPLIT = GemmTile(16, 64, 64, num_warps=4, num_stages=4, splits=4)
PRODUCTS = {
    (BIAS, 3 * HIDDEN, HIDDEN): TILE,
    (PARTIALS, HIDDEN, HIDDEN): SPLIT,
    (GELU, INTERMEDIATE, HIDDEN): TILE,
    (PARTIALS, HIDDEN, INTERMEDIATE): SPLIT,
}
ROUNDS = 30


def batch_of(lengths, seed) -> PackedBatch:
    ids = np.random.default_rng(seed).integers(0, 400, sum(lengths), dtype=np.int32)
    (batch,) = split(PackedRequest(ids, np.zeros_like(ids), list(lengths)), 1)
    return batch


def batches() -> list[PackedBatch]:
    """One of each bucket and length class that a graph overlaps in, and some between."""
    shapes = ([7], [16], [31], [64], [65], [128], [300], [512], [20] * 12, [3] * 60, [128] * 32)
    return [batch_of(lengths, seed) for seed, lengths in enumerate(shapes)]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """One that overlaps nothing and one that overlaps all, with the same products of ours."""
    directory = tmp_path_factory.mktemp("overlap")
    source = make_checkpoint(directory / "source", **SIZES)
    export(str(source), directory / "models", dtype="float16")
    sm = capability(torch.cuda.current_device())
    measured = {
        (epilogue, sm, outputs, inputs, bucket.tokens): tile
        for (epilogue, outputs, inputs), tile in PRODUCTS.items()
        for bucket in BUCKETS
    }
    made = []
    for overlapped in ({}, {sm: BUCKETS[-1].tokens}):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gpu_linear, "MEASURED", measured)
            patch.setattr(overlap, "OVERLAPPED_TOKENS", overlapped)
            encoder = Encoder(directory / "models" / "bert" / "1", "cuda:0", SETTINGS)
            encoder.warm_up()
            made.append(encoder)
    return made


def test_replays_of_overlapping_kernels_give_the_same_bits(encoders):
    plain, overlapping = encoders
    own = batches()
    expected = [plain.graphs.run(batch) for batch in own]
    assert all(np.isfinite(rows).all() for rows in expected)
    for _ in range(ROUNDS):  # one after the other: what a batch leaves behind is the next one's
        for batch, rows in zip(own, expected, strict=True):
            np.testing.assert_array_equal(overlapping.graphs.run(batch), rows)


def test_eager_kernels_that_overlap_give_the_same_bits(encoders, monkeypatch):
    plain, _ = encoders
    own = batches()
    expected = [plain._run_eagerly(batch) for batch in own]
    sm = capability(torch.cuda.current_device())
    monkeypatch.setattr(overlap, "OVERLAPPED_TOKENS", {sm: BUCKETS[-1].tokens})
    for _ in range(ROUNDS):
        for batch, rows in zip(own, expected, strict=True):
            np.testing.assert_array_equal(plain._run_eagerly(batch), rows)


def test_the_products_are_ours_and_right(encoders):
    """Beside PyTorch's products, to the rounding of float16."""
    plain, _ = encoders
    for batch in batches():
        library = plain._run_eagerly(batch)  # under the frozen tables: none is of these sizes
        rows = plain.graphs.run(batch)
        assert not np.array_equal(rows, library)
        assert np.linalg.norm(rows - library) <= 5e-3 * np.linalg.norm(library)
