from itertools import pairwise

import pytest
import torch
from bertron_kernels import pool_reference
from bertron_kernels.arguments import POOLING_MODES
from bertron_kernels.pooling import CANDIDATES, TILE

LENGTHS = {
    "one token": [1],
    "longest beside short": [3] * 15 + [512] + [3] * 15,
    "one past a block": [257, 63],
    "no tokens at both ends and between": [0, 5, 0, 0, 7, 0],
}


@pytest.mark.parametrize("normalize", [False, True], ids=["raw", "normalized"])
@pytest.mark.parametrize("mode", POOLING_MODES)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_pooling_agrees_with_float64(implementation, randn, packed, lengths, mode, normalize):
    hidden_states = randn(sum(lengths), 384, dtype=implementation.dtype)
    out = implementation.run("pool", hidden_states, packed(lengths), mode, normalize)
    exact = pool_reference(hidden_states.double(), packed(lengths), mode, normalize)
    peer = pool_reference(hidden_states.float(), packed(lengths), mode, normalize)
    implementation.check(out, exact, peer, dtype=torch.float32)


# Base, large, an odd one that fills no block; 300 sequences.
@pytest.mark.parametrize(("hidden_size", "count"), [(768, 2), (1024, 2), (331, 2), (64, 300)])
def test_every_size_agrees_with_float64(implementation, randn, packed, hidden_size, count):
    hidden_states = randn(3 * count, hidden_size, dtype=implementation.dtype)
    out = implementation.run("pool", hidden_states, packed([3] * count), "mean-max", True)
    exact = pool_reference(hidden_states.double(), packed([3] * count), "mean-max", True)
    implementation.check(out, exact, dtype=torch.float32)


@pytest.mark.parametrize("place", range(len(CANDIDATES)), ids=map(str, CANDIDATES))
def test_every_candidate_tile_agrees_with_float64(run_kernel, randn, packed, place):
    lengths = [1, 0, 70, 130]  # several blocks, and a part of one
    hidden_states = randn(sum(lengths), 384, dtype=torch.float16)
    out = run_kernel("pool_with_tile", hidden_states, packed(lengths), "mean-max", True, place)
    exact = pool_reference(hidden_states.double(), packed(lengths), "mean-max", True)
    assert (out.double() - exact).norm() <= 1e-5 * exact.norm()
    assert TILE in CANDIDATES


@pytest.mark.parametrize("mode", POOLING_MODES)
def test_a_batch_equals_its_parts(implementation, randn, packed, mode):
    lengths = [5, 33, 1, 70]
    hidden_states = randn(sum(lengths), 64, dtype=implementation.dtype)
    batch = implementation.run("pool", hidden_states, packed(lengths), mode, True)
    for row, (start, end) in zip(batch, pairwise(packed(lengths).tolist()), strict=True):
        part = hidden_states[start:end].contiguous()
        alone = implementation.run("pool", part, packed([end - start]), mode, True)
        torch.testing.assert_close(row, alone[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("mode", POOLING_MODES)
def test_a_zero_vector_stays_zero(run, packed, mode):
    out = run("pool", torch.zeros(4, 64), packed([4]), mode, True)
    assert torch.equal(out, torch.zeros_like(out))


@pytest.mark.parametrize("mode", POOLING_MODES)
def test_the_maximum_of_negative_numbers_is_negative(run, packed, mode):
    # A masked row or column read as 0 would win.
    out = run("pool", torch.full((5, 100), -2.0), packed([2, 3]), mode, False)
    assert torch.equal(out, torch.full_like(out, -2.0))


def test_means_are_not_rounded_to_the_input(run, packed):
    hidden_states = torch.tensor([[1.0], [1.0], [1.0078125]], dtype=torch.bfloat16)
    out = run("pool", hidden_states.expand(3, 16).contiguous(), packed([3]), "mean", False)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, torch.full((1, 16), 1 + 0.0078125 / 3))


@pytest.mark.parametrize("mode", POOLING_MODES)
@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_no_tokens_give_zeros(run, packed, lengths, mode):
    out = run("pool", torch.empty(0, 64), packed(lengths), mode, True)
    assert torch.equal(out, torch.zeros(len(lengths), 128 if mode == "mean-max" else 64))


def test_wrong_arguments_are_named(run, packed, refused):
    with refused("mode is 'sum', expected one of cls, last, max, mean"):
        run("pool", torch.zeros(4, 64), packed([4]), "sum", True)
    with refused(r"hidden_states has shape \[4\], expected \[T, E\]"):
        run("pool", torch.zeros(4), packed([4]), "mean", True)
    with refused(r"cu_seqlens has shape \[0\], expected \[B \+ 1\]"):
        run("pool", torch.zeros(4, 64), torch.empty(0, dtype=torch.int32), "mean", True)
    with refused(r"hidden_states has strides \[1, 4\].*contiguous"):
        run("pool", torch.zeros(64, 4).T, packed([4]), "mean", True)
