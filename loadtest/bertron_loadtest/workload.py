"""What is asked of the server, and what a right answer is. Needs no Locust and no server."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAMPLE_TEXTS = Path(__file__).with_name("texts.txt")
NUM_KNOWN_TEXTS = 8
KNOWN_TEXT_SHARE = 0.5  # of requests that hold a known text in a random place
# One text alone and in a batch differ in the last bits; a neighbour's row is far below this.
MIN_COSINE = 0.999
NORM_TOLERANCE = 1e-3


class WrongAnswerError(Exception):
    """The server answered, and the answer is not the text's embedding."""


@dataclass(frozen=True)
class Workload:
    """Texts of natural lengths in requests of a few sizes, the same for the same seed."""

    texts: Sequence[str]
    batch_sizes: Sequence[int]
    seed: int

    @property
    def known_texts(self) -> list[str]:
        """The texts whose vectors are asked for one by one before the load begins."""
        count = min(NUM_KNOWN_TEXTS, len(self.texts))
        chance = random.Random(self.seed)  # noqa: S311 - texts, not secrets
        return chance.sample(list(self.texts), count)

    def batches(self, user: int) -> Iterator[list[str]]:
        """Yield without end the lists of texts that one user sends."""
        chance = random.Random(f"{self.seed} {user}")  # noqa: S311
        known = self.known_texts
        while True:
            batch = chance.choices(self.texts, k=chance.choice(self.batch_sizes))
            if chance.random() < KNOWN_TEXT_SHARE:
                batch[chance.randrange(len(batch))] = chance.choice(known)
            yield batch


def read_texts(path: Path) -> list[str]:
    """Return the lines of a file that are not empty.

    Raises:
        ValueError: There are none, or the file is not UTF-8.
    """
    texts = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not texts:
        raise ValueError(f"{path} has no line with text")
    return texts


def parse_batch_sizes(sizes: str) -> list[int]:
    """Read ``"1,8,32"``.

    Raises:
        ValueError: Something else.
    """
    try:
        parsed = [int(size) for size in sizes.split(",")]
    except ValueError:
        parsed = []
    if not parsed or min(parsed) < 1:
        raise ValueError(f"batch sizes are {sizes!r}, numbers from 1 with commas are wanted")
    return parsed


class AnswerCheck:
    """Compares answers with vectors that the server gave when it had nothing else to do."""

    def __init__(self, texts: Sequence[str], vectors: NDArray[np.float32]) -> None:
        norms = np.linalg.norm(vectors, axis=1)
        # A model without a normalising layer has no norm to check.
        self._is_normalised = bool(np.all(np.abs(norms - 1) < NORM_TOLERANCE))
        self._directions = dict(zip(texts, vectors / norms[:, None], strict=True))
        self._embedding_size = vectors.shape[1]

    def check(self, texts: Sequence[str], answer: Any) -> None:
        """Raise unless the answer is right as far as can be told.

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
            if known is not None and float(vectors[row] @ known) < MIN_COSINE * norms[row]:
                raise WrongAnswerError("another vector than the text had before the load")
