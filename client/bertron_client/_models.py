"""What the client hands back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Iterator, Optional, Tuple

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ServerInfo:
    """What the server says of itself and of the model; a limit is None where it names none."""

    url: str
    server_version: str
    model: str
    embedding_size: int
    max_batch_size: int  # texts a request; the client splits longer lists
    max_tokens_per_text: Optional[int]
    max_characters_per_text: Optional[int]


@dataclass(frozen=True, eq=False)
class Embeddings:
    """One row for each text, in the order of the texts.

    ``numpy.asarray(embeddings)`` gives the rows without a copy; length, indexing and iteration are
    those of the rows. It is not a subclass of ndarray: a slice or a sum of one would still carry
    token counts, of the wrong rows.

    Attributes:
        vectors: [B, E] float32.
        token_counts: [B] int32, tokens the model read, special tokens included.
        truncated: [B] bool, whether the text was cut to the model's limit.
    """

    vectors: NDArray[np.float32]
    token_counts: NDArray[np.int32]
    truncated: NDArray[np.bool_]

    @property
    def shape(self) -> Tuple[int, int]:
        """(B, E)."""
        return (self.vectors.shape[0], self.vectors.shape[1])

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """Always float32."""
        return self.vectors.dtype

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, key: Any) -> Any:
        return self.vectors[key]

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return iter(self.vectors)

    def __array__(self, dtype: Any = None, copy: Optional[bool] = None) -> NDArray[Any]:
        """Numpy's conversion protocol, that of numpy 1 and 2."""
        if copy:
            return np.array(self.vectors, dtype=dtype)
        converted = np.asarray(self.vectors, dtype=dtype)
        if copy is False and converted is not self.vectors:
            raise ValueError(f"a copy is needed to make {dtype} of float32")
        return converted
