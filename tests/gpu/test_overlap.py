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
from bertron_kernels.launch import Launch, capability
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
BULK = GemmTile(64, 64, 64, num_warps=4, num_stages=4, bulk=True)
PERSISTENT = GemmTile(128, 128, 64, num_warps=8, num_stages=4, bulk=True, persistent=True)
FEW_TOKENS = 256
ROUNDS = 10


def tiles_of(tokens) -> dict[tuple[str, int, int], GemmTile]:
    """By epilogue, outputs and inputs: every kernel of ours serves one of the four products."""
    is_few = tokens <= FEW_TOKENS
    return {
        (BIAS, 3 * HIDDEN, HIDDEN): TILE if is_few else PERSISTENT,
        (PARTIALS, HIDDEN, HIDDEN): SPLIT if is_few else TILE,
        (GELU, INTERMEDIATE, HIDDEN): BULK,
        (PARTIALS, HIDDEN, INTERMEDIATE): SPLIT if is_few else BULK,
    }


def batch_of(lengths, seed) -> PackedBatch:
    ids = np.random.default_rng(seed).integers(0, 400, sum(lengths), dtype=np.int32)
    (batch,) = split(PackedRequest(ids, np.zeros_like(ids), list(lengths)), 1)
    return batch


def batches(encoder) -> list[PackedBatch]:
    """One of each graph, a token short of its bucket: one of the longest, then shorter ones."""
    made = []
    for seed, (tokens, length_class) in enumerate(sorted(encoder.graphs.shapes)):
        longest = min(length_class, tokens - 1)
        rest, short = tokens - 1 - longest, max(9, longest // 2)
        whole, last = divmod(rest, short)
        lengths = [longest, *[short] * whole, *[last] * (last > 0)]
        made.append(batch_of(lengths, seed))
    return made


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """An encoder that overlaps nothing, one that overlaps all, and the kernels that did."""
    directory = tmp_path_factory.mktemp("overlap")
    source = make_checkpoint(directory / "source", **SIZES)
    export(str(source), directory / "models", dtype="float16", tokenizer="file")
    sm = capability(torch.cuda.current_device())
    measured = {
        (epilogue, sm, outputs, inputs, bucket.tokens): tile
        for bucket in BUCKETS
        for (epilogue, outputs, inputs), tile in tiles_of(bucket.tokens).items()
    }
    encoders, started = [], []
    start = Launch._start

    def noted(launch):
        if launch.overlaps:
            started.append(launch.kernel.fn.__name__)
        start(launch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_linear, "MEASURED", measured)
        patch.setattr(Launch, "_start", noted)
        for overlapped in ({}, {sm: BUCKETS[-1].tokens}):
            assert not started
            patch.setattr(overlap, "OVERLAPPED_TOKENS", overlapped)
            encoder = Encoder(directory / "models" / "bert" / "1", "cuda:0", SETTINGS)
            encoder.warm_up()
            encoders.append(encoder)
        yield *encoders, set(started)


def test_all_but_the_ends_of_a_forward_overlap(served):
    _, _, started = served
    assert started == {
        "_gemm_kernel",
        "_bulk_gemm_kernel",
        "_varlen_attention_kernel",
        "_add_layer_norm_kernel",
    }


def test_replays_of_overlapping_kernels_give_the_same_bits(served):
    plain, overlapping, _ = served
    own = batches(plain)
    expected = [plain.graphs.run(batch) for batch in own]
    assert all(np.isfinite(rows).all() for rows in expected)
    for _ in range(ROUNDS):  # one after the other: what a batch leaves behind is the next one's
        for batch, rows in zip(own, expected, strict=True):
            np.testing.assert_array_equal(overlapping.graphs.run(batch), rows)


def test_kernels_that_are_queued_overlap_and_give_the_same_bits(served):
    """Launched one by one, behind what keeps the device busy until all have been."""
    plain, overlapping, _ = served  # the tables are still those of the second
    for batch in batches(plain)[::3]:
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda._sleep(20_000_000)  # clocks: some 10 ms
            rows = overlapping._run_eagerly(batch)
        overlap_free = plain.graphs.run(batch)
        assert np.linalg.norm(rows - overlap_free) <= 1e-3 * np.linalg.norm(overlap_free)
        np.testing.assert_array_equal(overlapping._run_eagerly(batch), rows)


def test_the_products_are_ours_and_right(served, monkeypatch):
    """Beside PyTorch's products, to the rounding of float16."""
    plain, _, _ = served
    for batch in batches(plain):
        rows = plain.graphs.run(batch)
        with monkeypatch.context() as patch:
            patch.setattr(gpu_linear, "MEASURED", {})
            patch.setattr(overlap, "OVERLAPPED_TOKENS", {})
            library = plain._run_eagerly(batch)
        assert not np.array_equal(rows, library)
        assert np.linalg.norm(rows - library) <= 5e-3 * np.linalg.norm(library)
