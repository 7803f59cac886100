import pytest
import torch
from bertron_kernels import add_layer_norm_reference, gpu_linear
from bertron_kernels.gemm import BIAS, CANDIDATES, GELU, PARTIALS, gemm_reference
from bertron_kernels.gpu_linear import MEASURED, measured_tile
from bertron_kernels.launch import capability

EPS = 1e-12
OPS = {"linear": BIAS, "linear_gelu": GELU, "linear_add_layer_norm": PARTIALS}


def arguments_of(op, x, weight, bias, rows):
    """What the op takes, without scales; ``rows`` are residual, norm_weight and norm_bias."""
    return (x, weight, None, None, bias, *((*rows, EPS) if OPS[op] == PARTIALS else ()))


def exact_result(op, x, weight, bias, rows):
    x, weight, bias, *rows = (tensor.double().cpu() for tensor in (x, weight, bias, *rows))
    product = gemm_reference(x, weight, bias, OPS[op])
    if OPS[op] != PARTIALS:
        return product
    residual, norm_weight, norm_bias = rows
    return add_layer_norm_reference(product, residual, None, norm_weight, norm_bias, EPS)


def draw(randn, tokens, inputs, outputs):
    x, weight, bias = randn(tokens, inputs), randn(outputs, inputs) * 0.1, randn(outputs)
    return x, weight, bias, (randn(tokens, outputs), randn(outputs), randn(outputs))


def test_what_serves_was_a_candidate_and_has_the_epilogue():
    assert set(MEASURED.values()) <= set(CANDIDATES)
    for (epilogue, *_), tile in MEASURED.items():
        assert epilogue in tile.epilogues()


def test_a_shape_has_a_tile_only_where_one_was_measured(monkeypatch):
    tile = CANDIDATES[0]
    monkeypatch.setattr(gpu_linear, "MEASURED", {(GELU, 90, 1536, 384, 128): tile})
    assert measured_tile(GELU, 90, 1536, 384, 128) is tile
    assert measured_tile(GELU, 90, 1536, 384, 65) is tile
    assert measured_tile(GELU, 90, 1536, 384, 64) is None
    assert measured_tile(GELU, 90, 1536, 384, 129) is None
    assert measured_tile(GELU, 80, 1536, 384, 128) is None
    assert measured_tile(BIAS, 90, 1536, 384, 128) is None


@pytest.mark.parametrize("op", OPS)
def test_a_shape_without_a_measurement_is_pytorchs_product(run_kernel, randn, op):
    x, weight, bias, rows = draw(randn, 5, 16, 24)
    out = run_kernel(op, *arguments_of(op, x, weight, bias, rows))
    exact = exact_result(op, x, weight, bias, rows)
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("op", OPS)
def test_a_measured_shape_is_our_kernels(monkeypatch, randn, op):
    x, weight, bias, rows = draw(randn, 100, 512, 128)
    x, weight, bias, *rows = (tensor.half().cuda() for tensor in (x, weight, bias, *rows))
    tile = next(tile for tile in reversed(CANDIDATES) if OPS[op] in tile.epilogues())
    served_by = []
    plan = gpu_linear.gemm.plan_gemm

    def noted(*arguments):
        served_by.append(arguments[-1])
        return plan(*arguments)

    monkeypatch.setattr(gpu_linear, "MEASURED", {(OPS[op], capability(0), 128, 512, 128): tile})
    monkeypatch.setattr(gpu_linear.gemm, "plan_gemm", noted)
    out = getattr(gpu_linear, op)(*arguments_of(op, x, weight, bias, rows)).double().cpu()
    exact = exact_result(op, x, weight, bias, rows)
    assert served_by == [tile]
    assert (out - exact).norm() <= 5e-4 * exact.norm()
