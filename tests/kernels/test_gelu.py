import pytest
import torch
import torch.nn.functional as F
from bertron_kernels import bias_gelu_reference
from bertron_kernels.gelu import CANDIDATES, TILE


# One row; rows that no block divides; MiniLM's and base's width, one that no block divides.
@pytest.mark.parametrize(
    ("num_tokens", "intermediate_size"), [(1, 1536), (63, 3072), (5, 1100), (257, 331)]
)
def test_bias_gelu_agrees_with_float64(implementation, randn, num_tokens, intermediate_size):
    x = randn(num_tokens, intermediate_size, dtype=implementation.dtype) * 2
    bias = randn(intermediate_size, dtype=implementation.dtype)
    out = implementation.run("bias_gelu", x, bias)
    exact = bias_gelu_reference(x.double(), bias.double())
    implementation.check(out, exact, F.gelu(x + bias))


def test_without_a_bias_it_is_gelu(implementation, randn):
    x = randn(63, 384, dtype=implementation.dtype) * 2
    out = implementation.run("bias_gelu", x, None)
    implementation.check(out, bias_gelu_reference(x.double(), None), F.gelu(x))


def test_it_is_the_error_function_not_tanh(run):
    # At 2.7 the two differ most, by 4.7e-4.
    x = torch.tensor([[2.7, -2.7, 0.0, 40.0, -40.0]])
    out = run("bias_gelu", x, None)
    assert (out - F.gelu(x.double())).abs().max() < 1e-6
    assert (out - F.gelu(x.double(), approximate="tanh")).abs().max() > 4e-4


def test_the_polynomial_for_16_bits_is_exact_but_for_rounding(run_kernel):
    # From -12 to 12 in steps of 2^-8, and some beyond 5, where the polynomial is constant.
    x = torch.arange(-12, 12, 2**-8)[None].half()
    x = torch.cat([x, torch.tensor([[-1000.0, -60.0, -0.0, 60.0, 65504.0]]).half()], 1)
    out = run_kernel("bias_gelu", x, None).double()
    exact = F.gelu(x.double())
    half_a_step = exact.abs() * 2**-11 + 2**-25
    allowed = half_a_step + 2e-6 * x.double().abs().clamp(min=1.0)
    assert ((out - exact).abs() <= allowed).all()


@pytest.mark.parametrize("place", range(len(CANDIDATES)), ids=map(str, CANDIDATES))
def test_every_candidate_tile_agrees_with_float64(run_kernel, randn, place):
    x, bias = randn(5, 1100, dtype=torch.float16) * 2, randn(1100, dtype=torch.float16)
    out = run_kernel("gelu_with_tile", x, bias, place)
    exact = bias_gelu_reference(x.double(), bias.double())
    assert (out.double() - exact).norm() <= 5e-4 * exact.norm()


def test_the_tile_that_serves_is_a_candidate():
    assert TILE in CANDIDATES


def test_no_tokens_give_no_tokens(run):
    assert run("bias_gelu", torch.empty(0, 64), torch.ones(64)).shape == (0, 64)


def test_wrong_arguments_are_named(run, refused):
    with refused(r"bias has shape \[63\], expected \[64\]"):
        run("bias_gelu", torch.zeros(4, 64), torch.zeros(63))
    with refused(r"x has shape \[4\], expected \[T, I\]"):
        run("bias_gelu", torch.zeros(4), None)
    with refused(r"x has strides \[1, 4\].*contiguous"):
        run("bias_gelu", torch.zeros(64, 4).T, None)
