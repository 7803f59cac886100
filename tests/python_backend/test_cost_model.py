"""The fit finds what made the times, and never predicts less than nothing."""

import numpy as np
import pytest
from bertron_backend.cost_model import CostModel

SHAPES = [(1, 8), (1, 128), (8, 32), (8, 128), (64, 32)]


@pytest.mark.parametrize("parts", [(0.5, 0.06, 1e-5), (2.0, 0.01, 0.0), (0.0, 0.1, 1e-4)])
def test_exact_times_give_back_what_made_them(parts):
    true = CostModel(*parts)
    times = [true.predict_ms([tokens] * texts) for texts, tokens in SHAPES]
    found = CostModel.fit(SHAPES, times)
    np.testing.assert_allclose(
        [found.fixed_ms, found.token_ms, found.pair_ms], parts, rtol=1e-6, atol=1e-9
    )


def test_noisy_times_still_predict_mixed_lengths():
    true, noise = CostModel(0.8, 0.06, 1e-5), np.random.default_rng(0)
    times = [true.predict_ms([n] * b) * noise.uniform(0.95, 1.05) for b, n in SHAPES]
    found = CostModel.fit(SHAPES, times)
    mixed = [3, 90, 17, 25, 25, 61]
    assert found.predict_ms(mixed) == pytest.approx(true.predict_ms(mixed), rel=0.1)


def test_no_part_is_negative_whatever_the_times():
    found = CostModel.fit(SHAPES, [9.0, 1.0, 4.0, 2.0, 1.0])
    assert min(found.fixed_ms, found.token_ms, found.pair_ms) >= 0


def test_a_single_shape_is_enough():
    assert CostModel.fit([(2, 10)], [5.0]).predict_ms([10, 10]) == pytest.approx(5.0)
