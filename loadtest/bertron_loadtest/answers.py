"""Whether an answer is right, as far as a load test can tell: shape, norm, known vectors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# One text alone and in a batch differ in the last bits; a neighbour's row is far below this.
MIN_COSINE = 0.999
NORM_TOLERANCE = 1e-3


class WrongAnswerError(Exception):
    """The server answered, and the answer is not the texts' embeddings."""


@dataclass(frozen=True)
class KnownVectors:
    """Texts and what a server that nothing else was asked of answered for them.

    Attributes:
        texts: N of them.
        vectors: [N, E] float32.
    """

    texts: Sequence[str]
    vectors: NDArray[np.float32]

    def save(self, path: Path) -> None:
        """Write an .npz file, for runs against another server that must agree with this one."""
        np.savez(path, texts=np.array(self.texts), vectors=self.vectors)

    @classmethod
    def load(cls, path: Path) -> "KnownVectors":
        """Read what ``save`` wrote.

        Raises:
            OSError: The file cannot be read.
            ValueError: It is none of these files.
        """
        try:
            with np.load(path) as arrays:
                known = cls(arrays["texts"].tolist(), arrays["vectors"])
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path} holds no known vectors: {error}") from None
        if known.vectors.ndim != 2 or len(known.vectors) != len(known.texts):
            raise ValueError(
                f"{path} has {len(known.texts)} texts and vectors of shape {known.vectors.shape}"
            )
        return known


class AnswerCheck:
    """Compares answers with known vectors."""

    def __init__(self, known: KnownVectors, min_cosine: float = MIN_COSINE) -> None:
        norms = np.linalg.norm(known.vectors, axis=1)
        # A model without a normalising layer has no norm to check.
        self._is_normalised = bool(np.all(np.abs(norms - 1) < NORM_TOLERANCE))
        self._directions = dict(zip(known.texts, known.vectors / norms[:, None], strict=True))
        self._embedding_size = known.vectors.shape[1]
        self._min_cosine = min_cosine

    def check(self, texts: Sequence[str], answer: Any) -> None:
        """Raise unless the answer is right as far as can be told.

        Args:
            texts: B of them.
            answer: What ``numpy.asarray`` makes [B, E] of.

        Raises:
            WrongAnswerError: Another shape, not finite, not of unit length, or a known text's
                vector points elsewhere.
        """
        vectors = np.asarray(answer)
        if vectors.shape != (len(texts), self._embedding_size):
            raise WrongAnswerError(
                f"shape {vectors.shape}, {(len(texts), self._embedding_size)} is wanted"
            )
        norms = np.linalg.norm(vectors, axis=1)
        if not np.isfinite(norms).all():
            raise WrongAnswerError("values that are not finite")
        if self._is_normalised and np.abs(norms - 1).max() > NORM_TOLERANCE:
            raise WrongAnswerError("a vector that is not of unit length")
        for row, text in enumerate(texts):
            known = self._directions.get(text)
            if known is not None and float(vectors[row] @ known) < self._min_cosine * norms[row]:
                raise WrongAnswerError("another vector than is known for the text")
