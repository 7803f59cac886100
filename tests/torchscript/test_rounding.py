"""Int8 weights: within a step of the nearest, and nearer to the product than those."""

import pytest
import torch
from bertron_torchscript.rounding import LARGEST_WEIGHT, Rounding


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def inputs_of(generator, rows, columns, rank):
    """[rows, columns] that vary in ``rank`` directions, and a little in all others."""
    basis = torch.randn(rank, columns, generator=generator)
    x = torch.randn(rows, rank, generator=generator) @ basis
    return x + 0.05 * torch.randn(rows, columns, generator=generator)


def nearest(weight):
    scale = weight.abs().amax(1, keepdim=True) / LARGEST_WEIGHT
    return torch.round(weight / scale) * scale


def test_independent_inputs_get_the_nearest_weight(generator):
    weight = torch.randn(7, 30, generator=generator)
    weight[3] = 0  # a row of zeros has no scale of its own
    input_scale = torch.rand(30, generator=generator) + 0.5
    for given in (None, input_scale):
        stored, scale, kept = Rounding(torch.eye(30)).quantize(weight, given)
        assert stored.dtype == torch.int8
        assert scale.dtype == torch.float32
        assert kept is given
        wanted = weight if given is None else weight / given
        error = (stored.float() * scale[:, None] - wanted).abs()
        assert (error <= 0.5001 * scale[:, None]).all()


@pytest.mark.parametrize("columns", [100, 300])  # less than a block, and blocks and a part of one
@pytest.mark.parametrize("is_scaled", [False, True])
def test_dependent_inputs_get_a_nearer_product(generator, columns, is_scaled):
    x = inputs_of(generator, 2000, columns, rank=columns // 4)
    seen, unseen = x[:1000], x[1000:]
    weight = torch.randn(40, columns, generator=generator)
    input_scale = torch.rand(columns, generator=generator) + 0.5 if is_scaled else None
    stored, scale, _ = Rounding(seen.T @ seen).quantize(weight, input_scale)
    rounded = stored.float() * scale[:, None]
    plain = weight
    if input_scale is not None:
        rounded = rounded * input_scale
        plain = weight / input_scale
    plain = nearest(plain) if input_scale is None else nearest(plain) * input_scale
    error = (unseen @ (rounded - weight).T).norm()
    assert error < 0.5 * (unseen @ (plain - weight).T).norm()


def test_inputs_that_never_came_do_no_harm(generator):
    x = torch.randn(50, 20, generator=generator)
    x[:, ::3] = 0
    weight = torch.randn(4, 20, generator=generator)
    stored, scale, _ = Rounding(x.T @ x).quantize(weight)
    error = (stored.float() * scale[:, None] - weight).abs()
    assert (error[:, ::3] <= 0.5001 * scale[:, None]).all()


def test_no_inputs_at_all(generator):
    weight = torch.randn(4, 8, generator=generator)
    stored, scale, _ = Rounding(torch.zeros(8, 8)).quantize(weight)
    assert torch.equal(stored.float() * scale[:, None], nearest(weight))
