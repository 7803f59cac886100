import pytest
import torch
import torch.nn.functional as F
from bertron_kernels.gemm import (
    BIAS,
    CANDIDATES,
    EPILOGUES,
    GELU,
    PARTIALS,
    GemmTile,
    gemm_reference,
    split_terms,
)

HAS_GPU = torch.cuda.is_available()
TILE_DTYPES = [torch.float16, torch.bfloat16 if HAS_GPU else torch.float32]
GATES = {torch.float32: 1e-5, torch.float16: 5e-4, torch.bfloat16: 4e-3}

# T, K, N: tiles are 16 to 128 rows, 32 to 256 columns, 64 or 128 terms at a time, in up to 8 parts.
SHAPES = {
    "one token": (1, 64, 128),
    "past a tile everywhere": (65, 72, 272),
    "terms that fill no block": (20, 40, 64),
    "rows of no whole 16 bytes": (20, 33, 64),
    "a group of tiles and a row more": (9 * 16 + 1, 16, 80),
    "more terms than parts, the last block short": (17, 584, 40),
    "whole blocks in every part": (3, 512, 40),
    "no terms": (5, 0, 64),
    "no tokens": (0, 64, 64),
}
# On a GPU each is a compilation, which the second dtype hardly changes.
FEW_SHAPES = ("past a tile everywhere", "more terms than parts, the last block short")
COMBINATIONS = [
    pytest.param(place, epilogue, id=f"{tile}-{epilogue}")
    for place, tile in enumerate(CANDIDATES)
    for epilogue in tile.epilogues()
]


# Under the interpreter also float32, which tells a wrong term from rounding; on a GPU, where fp32
# runs on other units and takes twice the memory, no tile serves it.
@pytest.mark.parametrize("dtype", TILE_DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("place", "epilogue"), COMBINATIONS)
def test_every_tile_agrees_with_float64(run_kernel, randn, place, epilogue, shape, dtype):
    num_tokens, num_inputs, num_outputs = SHAPES[shape]
    if CANDIDATES[place].bulk and (num_inputs % 8 or num_inputs == 0):
        pytest.skip("the copy unit takes whole 16 bytes: refused, as the next test says")
    if HAS_GPU and dtype == torch.bfloat16 and shape not in FEW_SHAPES:
        pytest.skip("another dtype, the same code")
    x = randn(num_tokens, num_inputs, dtype=dtype)
    weight = randn(num_outputs, num_inputs, dtype=dtype) * 0.1
    if epilogue == PARTIALS:
        partials = run_kernel("gemm_partials_with_tile", x, weight, place)
        exact = gemm_reference(x.double(), weight.double(), None, epilogue)
        assert partials.dtype == (torch.float32 if CANDIDATES[place].splits > 1 else dtype)
        assert len(partials) == split_terms(num_inputs, CANDIDATES[place])[1]
        out, gate = partials.sum(0), GATES[partials.dtype]
    else:
        bias = randn(num_outputs, dtype=dtype)
        out = run_kernel("gemm_with_tile", x, weight, bias, epilogue, place)
        exact = gemm_reference(x.double(), weight.double(), bias.double(), epilogue)
        assert out.dtype == dtype
        gate = GATES[dtype]
    assert out.shape == exact.shape
    assert (out.double() - exact).norm() <= gate * exact.norm()


@pytest.mark.parametrize(
    ("inputs", "block", "splits", "terms", "parts"),
    [
        (768, 64, 4, 192, 4),
        (768, 64, 8, 128, 6),  # 12 blocks are no 8 equal parts: 6 of two
        (384, 64, 8, 64, 6),
        (3072, 64, 8, 384, 8),
        (584, 64, 4, 192, 4),
        (40, 64, 8, 64, 1),
        (768, 128, 1, 768, 1),
        (0, 64, 4, 64, 1),
    ],
)
def test_the_terms_are_split_into_whole_blocks(inputs, block, splits, terms, parts):
    tile = GemmTile(16, 64, block, num_warps=4, num_stages=4, splits=splits)
    assert split_terms(inputs, tile) == (terms, parts)
    assert (parts - 1) * terms < max(inputs, 1) <= parts * terms


def test_the_copy_unit_refuses_rows_of_no_whole_16_bytes(run_kernel):
    x, weight, bias = torch.zeros(20, 33), torch.zeros(64, 33), torch.zeros(64)
    place = next(place for place, tile in enumerate(CANDIDATES) if tile.bulk)
    with pytest.raises(ValueError, match=r"x has 33 columns .* no multiple of 16 bytes"):
        run_kernel("gemm_with_tile", x, weight, bias, GELU, place)


def test_a_tile_refuses_an_epilogue_that_it_has_not(run_kernel):
    x, weight, bias = torch.zeros(4, 64), torch.zeros(64, 64), torch.zeros(64)
    split = next(place for place, tile in enumerate(CANDIDATES) if tile.splits > 1)
    with pytest.raises(ValueError, match="epilogue is 'gelu', with a bias, expected one of parti"):
        run_kernel("gemm_with_tile", x, weight, bias, GELU, split)
    with pytest.raises(ValueError, match="epilogue is 'partials', with a bias"):
        run_kernel("gemm_with_tile", x, weight, bias, PARTIALS, 0)
    with pytest.raises(ValueError, match="epilogue is 'relu', with a bias, expected one of bias"):
        run_kernel("gemm_with_tile", x, weight, bias, "relu", 0)


def test_every_candidate_is_there_once_and_every_epilogue_has_some():
    assert len(set(CANDIDATES)) == len(CANDIDATES)
    for few in (CANDIDATES[:12], CANDIDATES[12:]):
        assert {name for tile in few for name in tile.epilogues()} == set(EPILOGUES)


def test_the_reference_is_pytorchs_linear_then_gelu(randn):
    x, weight, bias = randn(7, 5).double(), randn(3, 5).double(), randn(3).double()
    expected = F.linear(x, weight, bias)
    torch.testing.assert_close(gemm_reference(x, weight, bias, BIAS), expected)
    torch.testing.assert_close(gemm_reference(x, weight, bias, GELU), F.gelu(expected))
    torch.testing.assert_close(gemm_reference(x, weight, None, PARTIALS), expected - bias)


@pytest.mark.parametrize(
    ("x", "weight", "bias", "message"),
    [
        ((4, 8), (6, 9), (6,), r"weight has shape \[6, 9\], expected \[6, 8\]"),
        ((4, 8), (6, 8), (5,), r"bias has shape \[5\], expected \[6\]"),
        ((4, 8, 1), (6, 8), (6,), r"x has shape \[4, 8, 1\], expected \[T, K\]"),
    ],
)
def test_wrong_shapes_are_named(run_kernel, x, weight, bias, message):
    with pytest.raises(ValueError, match=message):
        run_kernel(
            "gemm_with_tile", torch.zeros(x), torch.zeros(weight), torch.zeros(bias), GELU, 0
        )
