from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from bertron_kernels import varlen_attention_reference
from bertron_kernels.attention import (
    CANDIDATES,
    LENGTH_CLASSES,
    SM_90_TILES,
    TILES,
    choose_grid,
    length_class,
)

LENGTHS = {
    "one token": [1],
    "one short of a tile": [63],
    "one past a tile": [257],
    "the longest": [512],
    "around both length classes": [17, 31, 32, 33, 64, 65, 2],
    "one length, read in place": [48, 48, 48],
    "one length, scattered": [40, 7, 40, 90, 7, 40, 90],
    "more sequences than a warp has threads": [3] * 300,
    "long beside short": [3] * 15 + [512] + [3] * 15,
    "no tokens at both ends and between": [0, 5, 0, 0, 70, 0],
}


def torch_own(qkv, cu_seqlens, softmax_scale):
    contexts = []
    for start, end in pairwise(cu_seqlens.tolist()):
        query, key, value = qkv[start:end].permute(1, 2, 0, 3).unbind()
        context = F.scaled_dot_product_attention(query, key, value, scale=softmax_scale)
        contexts.append(context.transpose(0, 1))
    return torch.cat(contexts)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_attention_agrees_with_float64(implementation, randn, packed, lengths):
    num_heads = 2 if sum(lengths) < 400 else 1  # the interpreter takes 5 ms a tile
    qkv = randn(sum(lengths), 3, num_heads, 32, dtype=implementation.dtype)
    arguments = (packed(lengths), max(lengths), 32**-0.5)
    out = implementation.run("varlen_attention", qkv, *arguments)
    exact = varlen_attention_reference(qkv.double(), *arguments)
    implementation.check(out, exact, torch_own(qkv, arguments[0], 32**-0.5))


# 16 is the smallest tile, 128 the wide one; 12 heads as in BERT-base, 1 and 3 as in none.
@pytest.mark.parametrize(("num_heads", "head_dim"), [(3, 16), (12, 64), (1, 128)])
def test_every_head_dim_agrees_with_float64(implementation, randn, packed, num_heads, head_dim):
    qkv = randn(100, 3, num_heads, head_dim, dtype=implementation.dtype)
    arguments = (packed([29, 71]), 71, head_dim**-0.5)
    out = implementation.run("varlen_attention", qkv, *arguments)
    exact = varlen_attention_reference(qkv.double(), *arguments)
    implementation.check(out, exact, torch_own(qkv, arguments[0], head_dim**-0.5))


# They are for fp16 and bf16. The interpreter runs them in fp32 too, which tells a wrong sum from
# rounding; a GPU has no room for that.
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float16, 5e-4), *([] if torch.cuda.is_available() else [(torch.float32, 1e-5)])],
    ids=str,
)
@pytest.mark.parametrize(
    ("bound", "place"), [(b, place) for b in LENGTH_CLASSES for place in range(len(CANDIDATES[b]))]
)
def test_every_candidate_tile_agrees_with_float64(
    run_kernel, randn, packed, bound, place, dtype, tolerance
):
    lengths = [bound // 2 - 3, bound, 1, bound // 2]  # whole blocks of keys, and parts of one
    qkv = randn(sum(lengths), 3, 1, 32, dtype=dtype)
    arguments = (packed(lengths), bound, 32**-0.5)
    out = run_kernel("attention_with_tile", qkv, *arguments, place)
    exact = varlen_attention_reference(qkv.double(), *arguments)
    assert (out.double() - exact).norm() <= tolerance * exact.norm()
    if dtype == torch.float32:
        torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("bound", "place"), [(b, place) for b in LENGTH_CLASSES for place in range(len(CANDIDATES[b]))]
)
def test_a_neighbours_infinity_stays_with_it(run_kernel, randn, packed, bound, place):
    # A block that ends in the next sequence: 0 times infinity would be NaN.
    length = bound // 2 + 5
    qkv = randn(bound, 3, 1, 32, dtype=torch.float16)
    qkv[length:] = float("inf")
    cu_seqlens = packed([length, bound - length])
    out = run_kernel("attention_with_tile", qkv, cu_seqlens, bound, 0.2, place)
    exact = varlen_attention_reference(qkv[:length].double(), packed([length]), length, 0.2)
    assert (out[:length].double() - exact).norm() <= 5e-4 * exact.norm()


def test_rows_of_no_sequence_are_left_alone(run_kernel, randn, packed):
    # A batch rounded up to a bucket: tokens after the last sequence, and sequences of no tokens.
    lengths = [33, 7, 0, 0]
    qkv = randn(64, 3, 2, 32)
    for max_seqlen in (33, 500):  # every sequence its programs; programs that search
        out = run_kernel("varlen_attention", qkv, packed(lengths), max_seqlen, 0.2)
        exact = varlen_attention_reference(qkv[:40].double(), packed(lengths), 33, 0.2)
        torch.testing.assert_close(out[:40].double(), exact, rtol=1e-5, atol=1e-5)
        assert out[40:].isnan().all()


def test_length_classes_hold_their_bounds():
    lengths = (0, 1, 32, 33, 64, 65, 128, 129, 512, 8192)
    classes = [32, 32, 32, 64, 64, 128, 128, 512, 512, 512]
    assert [length_class(length) for length in lengths] == classes
    assert {bound for _, _, bound in TILES} == set(LENGTH_CLASSES) == set(CANDIDATES)
    assert set(SM_90_TILES) <= set(TILES)


def test_like_lengths_get_their_programs_and_mixed_ones_search():
    assert choose_grid(32 * 128, 32, 128, 64) == (64, 2)
    assert choose_grid(600, 31, 512, 64) == (600 // 64 + 31, 0)
    assert choose_grid(512, 1, 512, 64) == (8, 8)


def test_large_scores_do_not_overflow(implementation, randn, packed):
    # Scores up to some thousands: exp without the running maximum would be infinite.
    qkv = randn(100, 3, 2, 32, dtype=implementation.dtype) * 16
    arguments = (packed([30, 70]), 70, 1.0)
    out = implementation.run("varlen_attention", qkv, *arguments)
    implementation.check(out, varlen_attention_reference(qkv.double(), *arguments))


def test_a_batch_equals_its_parts(implementation, randn, packed):
    lengths = [5, 33, 5, 70, 1]
    qkv = randn(sum(lengths), 3, 2, 32, dtype=implementation.dtype)
    cu_seqlens = packed(lengths)
    batch = implementation.run("varlen_attention", qkv, cu_seqlens, 70, 0.2)
    for start, end in pairwise(cu_seqlens.tolist()):
        part = qkv[start:end].contiguous()
        length = end - start
        alone = implementation.run("varlen_attention", part, packed([length]), length, 0.2)
        # The class of the longest sequence chooses the tile, and with it the order of the sums.
        tolerance = 2 * torch.finfo(implementation.dtype).eps
        torch.testing.assert_close(batch[start:end], alone, rtol=tolerance, atol=tolerance)


def test_a_larger_max_seqlen_changes_nothing(run, randn, packed):
    qkv = randn(40, 3, 2, 32)
    cu_seqlens = packed([33, 7])
    out = run("varlen_attention", qkv, cu_seqlens, 33, 0.2)
    assert torch.equal(run("varlen_attention", qkv, cu_seqlens, 500, 0.2), out)


@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_no_tokens_give_no_tokens(run, packed, lengths):
    out = run("varlen_attention", torch.empty(0, 3, 2, 32), packed(lengths), 0, 0.2)
    assert out.shape == (0, 2, 32)


@pytest.mark.parametrize(
    ("shape", "dtype", "cu_dtype", "message"),
    [
        ((4, 2, 2, 32), torch.float32, torch.int32, r"qkv has shape \[4, 2, 2, 32\].*\[4, 3, 2"),
        ((4, 3, 64), torch.float32, torch.int32, r"qkv has shape \[4, 3, 64\].*\[T, 3, H, D\]"),
        ((4, 3, 2, 32), torch.int32, torch.int32, r"qkv has dtype torch.int32, expected .*bfloat"),
        ((4, 3, 2, 32), torch.float32, torch.int64, r"cu_seqlens has dtype torch.int64.*int32"),
    ],
)
def test_wrong_arguments_are_named(run, shape, dtype, cu_dtype, message, refused):
    cu_seqlens = torch.tensor([0, 4], dtype=cu_dtype)
    with refused(message):
        run("varlen_attention", torch.zeros(shape, dtype=dtype), cu_seqlens, 4, 0.2)


def test_a_strided_qkv_is_refused(run, packed, refused):
    qkv = torch.zeros(3, 4, 2, 32).transpose(0, 1)
    with refused(r"qkv has strides \[64, 256, 32, 1\].*contiguous"):
        run("varlen_attention", qkv, packed([4]), 4, 0.2)


@pytest.mark.parametrize("head_dim", [8, 48, 512])
def test_a_head_dim_that_no_tile_takes_is_refused(run_kernel, packed, head_dim, refused):
    with refused(rf"head_dim is {head_dim}, .*power of two from 16 to 256"):
        run_kernel("varlen_attention", torch.zeros(4, 3, 1, head_dim), packed([4]), 4, 0.2)


@pytest.mark.parametrize("scale", [0.0, -0.5, float("nan")])
def test_a_scale_that_turns_the_scores_around_is_refused(run_kernel, packed, scale, refused):
    with refused(rf"softmax_scale is {scale}, expected more than 0"):
        run_kernel("varlen_attention", torch.zeros(4, 3, 1, 32), packed([4]), 4, scale)


def test_offsets_beyond_32_bits_are_refused(run_kernel, packed, refused):
    with refused("max_seqlen is 1000000, expected less than 932067"):
        run_kernel("varlen_attention", torch.zeros(4, 3, 12, 64), packed([4]), 10**6, 0.2)


@pytest.mark.parametrize(
    ("cu_seqlens", "message"),
    [
        ([0, 3], "goes from 0 to 3, expected 0 to 4"),
        ([1, 4], "goes from 1 to 4, expected 0 to 4"),
        ([0, 3, 1, 4], "falls from 3 to 1 at 2"),
        ([0, 4], "a sequence of 4 tokens, expected at most max_seqlen 3"),
    ],
)
def test_the_cpu_checks_cu_seqlens(cpu, cu_seqlens, message, refused):
    qkv = torch.zeros(4, 3, 2, 32)
    bounds = torch.tensor(cu_seqlens, dtype=torch.int32)
    with refused(message):
        cpu.run("varlen_attention", qkv, bounds, 3, 0.2)
