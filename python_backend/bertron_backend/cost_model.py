"""How long a batch takes, from its token counts: fitted at warm-up, for logs and metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


@dataclasses.dataclass(frozen=True)
class CostModel:
    """Milliseconds of a forward: a fixed part, one per token, one per pair of tokens in a text.

    Attributes:
        fixed_ms: Of any batch: weights read, threads woken.
        token_ms: The matrix products, linear in tokens.
        pair_ms: Attention, the sum of squared lengths.
    """

    fixed_ms: float
    token_ms: float
    pair_ms: float

    def predict_ms(self, lengths: Sequence[int] | npt.NDArray[np.int64]) -> float:
        """A batch of texts of these token counts."""
        counts = np.asarray(lengths, dtype=np.float64)
        pairs = float(np.square(counts).sum())
        return self.fixed_ms + self.token_ms * float(counts.sum()) + self.pair_ms * pairs

    @classmethod
    def fit(cls, shapes: Sequence[tuple[int, int]], times_ms: Sequence[float]) -> CostModel:
        """From the times of (texts, tokens a text) forwards.

        Relative errors are made small, not absolute ones: a short text's prediction must be as
        good as a large batch's. No part is negative; what would be is left out, dearest first.
        """
        texts, tokens = np.array(shapes, dtype=np.float64).T
        columns = np.stack([np.ones_like(texts), texts * tokens, texts * tokens**2], axis=1)
        weighted = columns / np.array(times_ms)[:, None]
        kept = [0, 1, 2]
        while True:
            found, *_ = np.linalg.lstsq(weighted[:, kept], np.ones(len(shapes)), rcond=None)
            if (found >= 0).all() or len(kept) == 1:
                break
            del kept[int(found.argmin())]
        parts = np.zeros(3)
        parts[kept] = np.maximum(found, 0)
        return cls(*parts.tolist())
