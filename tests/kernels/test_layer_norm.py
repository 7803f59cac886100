import pytest
import torch
import torch.nn.functional as F
from bertron_kernels import add_layer_norm_reference
from bertron_kernels.launch import RowTile
from bertron_kernels.layer_norm import CANDIDATES, choose_tile

EPS = 1e-12  # BERT's own


def double(*tensors):
    return tuple(None if tensor is None else tensor.double() for tensor in tensors)


# 1 row, a number of rows that no block divides, 257; MiniLM, base, large and an odd hidden size.
@pytest.mark.parametrize("num_tokens", [1, 63, 257])
@pytest.mark.parametrize("hidden_size", [384, 768, 1024, 331])
def test_add_layer_norm_agrees_with_float64(implementation, randn, num_tokens, hidden_size):
    x, residual = (randn(num_tokens, hidden_size, dtype=implementation.dtype) for _ in range(2))
    bias, weight, shift = (randn(hidden_size, dtype=implementation.dtype) for _ in range(3))
    out = implementation.run("add_layer_norm", x, residual, bias, weight, shift, EPS)
    exact = add_layer_norm_reference(*double(x, residual, bias, weight, shift), EPS)
    peer = F.layer_norm(x + bias + residual, (hidden_size,), weight, shift, EPS)
    implementation.check(out, exact, peer)


# What a bfloat16 model's CUDA products give to its float32 residual stream, and the reverse. Not
# fp16 on the CPU: the library takes none.
@pytest.mark.parametrize(
    ("product", "stream", "gate"),
    [(torch.bfloat16, torch.float32, 1e-5), (torch.float32, torch.bfloat16, 4e-3)],
)
@pytest.mark.parametrize("has_residual", [False, True])
def test_the_product_may_have_another_dtype(run, randn, product, stream, gate, has_residual):
    x = randn(63, 331, dtype=product)
    residual = randn(63, 331, dtype=stream) if has_residual else None
    bias, weight, shift = (randn(331, dtype=stream) for _ in range(3))
    out = run("add_layer_norm", x, residual, bias, weight, shift, EPS)
    assert out.dtype == stream
    exact = add_layer_norm_reference(*double(x, residual, bias, weight, shift), EPS)
    assert (out.double() - exact).norm() <= gate * exact.norm()


@pytest.mark.parametrize("place", range(len(CANDIDATES)), ids=map(str, CANDIDATES))
def test_every_candidate_tile_agrees_with_float64(run_kernel, randn, place):
    x, residual = (randn(21, 384, dtype=torch.float16) for _ in range(2))
    vectors = [randn(384, dtype=torch.float16) for _ in range(3)]
    out = run_kernel("norm_with_tile", x, residual, *vectors, EPS, place)
    exact = add_layer_norm_reference(*double(x, residual, *vectors), EPS)
    assert (out.double() - exact).norm() <= 5e-4 * exact.norm()


# The most parts, and one; a bfloat16 product's sums go to a float32 stream.
@pytest.mark.parametrize("parts", [1, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("has_residual", [False, True])
def test_partial_sums_are_added_first(run_kernel, randn, parts, dtype, has_residual):
    partials = randn(parts, 21, 331)
    residual = randn(21, 331, dtype=dtype) if has_residual else None
    vectors = [randn(331, dtype=dtype) for _ in range(3)]
    out = run_kernel("add_partials_layer_norm", partials, residual, *vectors, EPS)
    exact = add_layer_norm_reference(*double(partials.sum(0), residual, *vectors), EPS)
    assert out.dtype == dtype
    assert (out.double() - exact).norm() <= {16: 5e-4, 32: 1e-5}[8 * dtype.itemsize] * exact.norm()


def test_partial_sums_of_no_tokens_are_none(run_kernel):
    row = torch.ones(64)
    partials = torch.empty(3, 0, 64)
    assert run_kernel("add_partials_layer_norm", partials, None, *[row] * 3, EPS).shape == (0, 64)


def test_wrong_partial_sums_are_named(run_kernel, refused):
    row = torch.zeros(64)
    with refused(r"partials has shape \[0, ...\], expected \[P, T, E\] of at least one part"):
        run_kernel("add_partials_layer_norm", torch.zeros(0, 4, 64), None, row, row, row, EPS)
    with refused(r"partials has shape \[4, 64\], expected \[P, T, E\]"):
        run_kernel("add_partials_layer_norm", torch.zeros(4, 64), None, row, row, row, EPS)
    with refused("partials has dtype torch.float64, expected torch.float16, torch.bfloat16, to"):
        run_kernel("add_partials_layer_norm", torch.zeros(2, 4, 64).double(), None, *[row] * 3, EPS)
    with refused(r"residual has shape \[3, 64\], expected \[4, 64\]"):
        run_kernel(
            "add_partials_layer_norm", torch.zeros(2, 4, 64), row.expand(3, 64), *[row] * 3, EPS
        )


@pytest.mark.parametrize("block_e", [128, 512, 1024, 4096, 8192])
@pytest.mark.parametrize("num_tokens", [1, 1024, 1025, 16384])
def test_a_tile_holds_the_row_and_few_values_a_thread(num_tokens, block_e):
    tile = choose_tile(num_tokens, block_e)
    assert tile.elements >= block_e
    assert tile.elements / tile.num_warps == 1024
    if block_e < 1024 or (block_e == 1024 and num_tokens <= 1024):
        assert tile == RowTile(1024, 1)


@pytest.mark.parametrize(
    ("block_e", "num_warps"), [(16, 1), (512, 2), (1024, 4), (4096, 16), (8192, 16)]
)
def test_a_row_of_partial_sums_is_a_program_of_few_values_a_thread(block_e, num_warps):
    assert choose_tile(128, block_e, parts=4) == RowTile(block_e, num_warps)


@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_what_is_absent_adds_nothing(implementation, randn, has_residual, has_bias):
    x = randn(5, 64, dtype=implementation.dtype)
    residual = randn(5, 64, dtype=implementation.dtype) if has_residual else None
    bias = randn(64, dtype=implementation.dtype) if has_bias else None
    weight, shift = (randn(64, dtype=implementation.dtype) for _ in range(2))
    out = implementation.run("add_layer_norm", x, residual, bias, weight, shift, EPS)
    exact = add_layer_norm_reference(*double(x, residual, bias, weight, shift), EPS)
    implementation.check(out, exact)


def test_a_large_mean_keeps_its_digits(run, randn):
    # BERT's residual stream has such rows; E[x^2] - E[x]^2 is wrong by 14 % in fp32 here.
    x = 30 + 0.05 * randn(7, 768)
    one, zero = torch.ones(768), torch.zeros(768)
    out = run("add_layer_norm", x, None, None, one, zero, EPS)
    exact = add_layer_norm_reference(*double(x, None, None, one, zero), EPS)
    assert (out.double() - exact).norm() <= 1e-4 * exact.norm()


def test_a_constant_row_is_the_shift(run, randn):
    shift = randn(100)
    out = run("add_layer_norm", torch.full((2, 100), 2.0), None, None, randn(100), shift, EPS)
    torch.testing.assert_close(out, shift.expand(2, 100), rtol=0, atol=1e-4)


def test_the_widest_row_is_normalised(run, randn):
    x = randn(2, 8192)
    weight, shift = randn(8192), randn(8192)
    out = run("add_layer_norm", x, None, None, weight, shift, EPS)
    exact = add_layer_norm_reference(*double(x, None, None, weight, shift), EPS)
    assert (out.double() - exact).norm() <= 1e-5 * exact.norm()


def test_no_tokens_give_no_tokens(run):
    row = torch.ones(64)
    assert run("add_layer_norm", torch.empty(0, 64), None, row, row, row, EPS).shape == (0, 64)


def test_wrong_arguments_are_named(run, refused):
    x, row = torch.zeros(4, 64), torch.zeros(64)
    with refused(r"residual has shape \[3, 64\], expected \[4, 64\]"):
        run("add_layer_norm", x, torch.zeros(3, 64), None, row, row, EPS)
    with refused(r"residual has dtype torch.bfloat16, expected torch.float32"):
        run("add_layer_norm", x, x.bfloat16(), None, row, row, EPS)
    with refused(r"norm_bias has dtype torch.bfloat16, expected torch.float32"):
        run("add_layer_norm", x, None, None, row, row.bfloat16(), EPS)
    with refused(r"x has strides \[1, 4\].*contiguous"):
        run("add_layer_norm", torch.zeros(64, 4).T, None, None, row, row, EPS)


def test_a_row_wider_than_a_kernel_takes_is_refused(run_kernel, refused):
    wide = torch.zeros(8193)
    with refused("hidden size is 8193, expected 1 to 8192"):
        run_kernel("add_layer_norm", torch.zeros(1, 8193), None, None, wide, wide, EPS)
