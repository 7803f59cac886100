import pytest
import torch
import torch.nn.functional as F
from bertron_kernels import gemm_gelu
from bertron_kernels.gemm_gelu import CANDIDATES, gemm_bias_gelu_reference, measured_tile
from bertron_kernels.launch import capability
from bertron_kernels.linear import linear

HAS_GPU = torch.cuda.is_available()
TILE_DTYPES = [torch.float16, torch.bfloat16 if HAS_GPU else torch.float32]
GATES = {torch.float32: 1e-5, torch.float16: 5e-4, torch.bfloat16: 4e-3}

# T, K, N: tiles are 16 to 128 rows, 64 to 256 columns, 64 terms at a time.
SHAPES = {
    "one token": (1, 64, 128),
    "past a tile everywhere": (65, 72, 272),
    "terms that fill no block": (20, 40, 64),
    "rows of no whole 16 bytes": (20, 33, 64),
    "a group of tiles and a row more": (9 * 16 + 1, 16, 80),
    "no tokens": (0, 64, 64),
}


# Under the interpreter also float32, which tells a wrong term from rounding; on a GPU, where fp32
# runs on other units and takes twice the memory, no tile serves it.
@pytest.mark.parametrize("dtype", TILE_DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("place", range(len(CANDIDATES)), ids=map(str, CANDIDATES))
def test_every_tile_agrees_with_float64(run_kernel, randn, place, shape, dtype):
    num_tokens, num_inputs, num_outputs = shape
    if CANDIDATES[place].bulk and num_inputs % 8:
        pytest.skip("the copy unit takes whole 16 bytes: refused, as the next test says")
    x = randn(num_tokens, num_inputs, dtype=dtype)
    weight = randn(num_outputs, num_inputs, dtype=dtype) * 0.1
    bias = randn(num_outputs, dtype=dtype)
    out = run_kernel("gemm_with_tile", x, weight, bias, place)
    exact = gemm_bias_gelu_reference(x.double(), weight.double(), bias.double())
    assert out.dtype == dtype
    assert out.shape == exact.shape
    assert (out.double() - exact).norm() <= GATES[dtype] * exact.norm()


def test_the_copy_unit_refuses_rows_of_no_whole_16_bytes(run_kernel):
    x, weight, bias = torch.zeros(20, 33), torch.zeros(64, 33), torch.zeros(64)
    place = next(place for place, tile in enumerate(CANDIDATES) if tile.bulk)
    with pytest.raises(ValueError, match=r"x has 33 columns .* no multiple of 16 bytes"):
        run_kernel("gemm_with_tile", x, weight, bias, place)


def test_what_serves_was_a_candidate():
    assert set(gemm_gelu.MEASURED.values()) <= set(CANDIDATES)


def test_the_reference_is_linear_then_gelu(randn):
    x, weight, bias = randn(7, 5).double(), randn(3, 5).double(), randn(3).double()
    expected = F.gelu(linear(x, weight, None, None, bias))
    torch.testing.assert_close(gemm_bias_gelu_reference(x, weight, bias), expected)


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
        run_kernel("gemm_with_tile", torch.zeros(x), torch.zeros(weight), torch.zeros(bias), 0)


def test_a_shape_has_a_tile_only_where_one_was_measured(monkeypatch):
    tile = CANDIDATES[0]
    monkeypatch.setattr(gemm_gelu, "MEASURED", {(90, 1536, 384, 128): tile})
    assert measured_tile(90, 1536, 384, 128) is tile
    assert measured_tile(90, 1536, 384, 65) is tile
    assert measured_tile(90, 1536, 384, 64) is None
    assert measured_tile(90, 1536, 384, 129) is None
    assert measured_tile(80, 1536, 384, 128) is None


def test_a_shape_without_a_measurement_is_pytorchs_product(run_kernel, randn):
    x, weight, bias = randn(5, 16), randn(24, 16), randn(24)
    out = run_kernel("linear_gelu", x, weight, None, None, bias)
    exact = gemm_bias_gelu_reference(x.double(), weight.double(), bias.double())
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_measured_shape_is_our_kernels(monkeypatch, randn):
    x, weight, bias = (randn(*shape).half().cuda() for shape in ((100, 64), (128, 64), (128,)))
    tile, served_by = CANDIDATES[0], []
    kernel = gemm_gelu.gemm_bias_gelu

    def noted(*arguments):
        served_by.append(arguments[-1])
        return kernel(*arguments)

    monkeypatch.setattr(gemm_gelu, "MEASURED", {(capability(0), 128, 64, 128): tile})
    monkeypatch.setattr(gemm_gelu, "gemm_bias_gelu", noted)
    out = gemm_gelu.linear_gelu(x, weight, None, None, bias).double().cpu()
    exact = gemm_bias_gelu_reference(*(t.double().cpu() for t in (x, weight, bias)))
    assert served_by == [tile]
    assert (out - exact).norm() <= 5e-4 * exact.norm()
