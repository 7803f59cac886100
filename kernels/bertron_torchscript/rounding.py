"""Int8 weights whose rounding errors cancel in the product, as far as the inputs are alike.

Rounded to the nearest, a weight [N, K] errs in each of its K columns for itself. Inputs are far
from independent: what one column errs, those not yet rounded can take back.

Source: Frantar et al. 2022, GPTQ, arXiv:2210.17323, section 3 (one order for all rows, blocks, the
Cholesky factor of the inverse).
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_WEIGHT = 127  # -128 is left out, so that the range is symmetric
DAMPING = 0.01  # of each input's own power: inputs of other texts are not quite as these
_BLOCK = 128  # columns whose errors reach the later ones in one matrix product


class Rounding:
    """Rounds weights whose inputs had this Gram matrix.

    Args:
        gram: [K, K], the sum of x xᵀ over the inputs x [K] of some texts.
    """

    def __init__(self, gram: Tensor) -> None:
        damped = gram.double()
        power = damped.diag()
        self._order = power.argsort(descending=True)  # the largest errors are made first
        damped = damped + torch.diag(DAMPING * power + torch.finfo(torch.float32).tiny)
        damped = damped[self._order][:, self._order]
        # Upper triangular U with UᵀU the inverse: row k says how what column k errs spreads.
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        self._spread = torch.linalg.cholesky(inverse, upper=True)

    def quantize(
        self, weight: Tensor, input_scale: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Int8 for ``weight`` [N, K], whose inputs come times ``input_scale`` [K] float32.

        Returns:
            The arguments of ``pack_weight`` (bertron_kernels.schemas): [N, K] int8, the scale of
            each output [N] float32, and ``input_scale``.
        """
        spread = self._spread
        if input_scale is not None:  # the Gram matrix of scaled inputs, without a new factor
            spread = spread / input_scale[self._order]
            weight = weight / input_scale
        largest = weight.abs().amax(1)
        scale = torch.where(largest > 0, largest / LARGEST_WEIGHT, torch.ones_like(largest))
        left, spread = weight[:, self._order].clone(), spread.float()
        rounded = torch.empty_like(left)
        for start in range(0, left.shape[1], _BLOCK):
            end = min(start + _BLOCK, left.shape[1])
            errors = torch.empty_like(left[:, start:end])
            for k in range(start, end):
                rounded[:, k] = _nearest(left[:, k], scale)
                error = (left[:, k] - rounded[:, k] * scale) / spread[k, k]
                left[:, k + 1 : end] -= error[:, None] * spread[k, k + 1 : end]
                errors[:, k - start] = error
            left[:, end:] -= errors @ spread[start:end, end:]
        found = torch.empty_like(rounded, dtype=torch.int8)
        found[:, self._order] = rounded.to(torch.int8)
        return found, scale, input_scale


def _nearest(values: Tensor, scale: Tensor) -> Tensor:
    return torch.round(values / scale).clamp(-LARGEST_WEIGHT, LARGEST_WEIGHT)
