"""What the client hands back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Optional, Tuple

import numpy as np
from numpy.typing import NDArray

from . import _vectors
from ._vectors import BinaryVectors, Int8Vectors


@dataclass(frozen=True)
class ServerInfo:
    """What the server says of itself and of the model; None where it says nothing.

    Attributes:
        url: Where it was asked.
        server_version: Triton server's.
        model: The one that answers ``embed``.
        model_versions: Of it, those that are served.
        models: What it consists of, in the order in which a text passes them.
        tokenizer: The one of them that answers ``tokenize``.
        embedding_size: E.
        max_batch_size: Texts a request; the client splits longer lists.
        max_tokens_per_text: Longer texts are cut, or refused.
        max_characters_per_text: Longer texts are refused.
        max_characters_per_request: Of all its texts together; the client keeps to it.
        dtype: In which the model was exported; vectors arrive as float32 always.
        device: "cpu" or "gpu".
        pooling: How a text's tokens become one vector.
        normalized: Whether vectors have length 1.
    """

    url: str
    server_version: str
    model: str
    model_versions: Tuple[str, ...]
    models: Tuple[str, ...]
    tokenizer: Optional[str]
    embedding_size: int
    max_batch_size: int
    max_tokens_per_text: Optional[int]
    max_characters_per_text: Optional[int]
    max_characters_per_request: Optional[int]
    dtype: Optional[str]
    device: Optional[str]
    pooling: Optional[str]
    normalized: Optional[bool]


@dataclass(frozen=True)
class ModelStatistics:
    """What one model has done since the server started.

    Attributes:
        inferences: Texts computed.
        executions: Batches computed.
        requests_succeeded: Requests answered.
        requests_failed: Requests answered with an error.
        queue_ms: Mean wait of a request for its batch.
        compute_ms: Mean time of a request in its batch.
        batch_sizes: How many executions there were of each batch size; empty for an ensemble.
    """

    inferences: int
    executions: int
    requests_succeeded: int
    requests_failed: int
    queue_ms: float
    compute_ms: float
    batch_sizes: Dict[int, int]


@dataclass(frozen=True, eq=False)
class Embedding:
    """One text's row, as ``embed_iter`` gives it.

    Attributes:
        index: Place of the text.
        vector: [E] float32.
        token_count: Tokens the model read, special tokens included.
        truncated: Whether the text was cut to the model's limit.
    """

    index: int
    vector: NDArray[np.float32]
    token_count: int
    truncated: bool


@dataclass(frozen=True, eq=False)
class TokenizedText:
    """What the model reads of one text, special tokens included.

    Attributes:
        tokens: n strings.
        ids: [n] int32, of the vocabulary.
        type_ids: [n] int32; 1 in the second text of a pair, for models that tell them apart.
        offsets: [n, 2] int32, first and behind the last character of each token in its text; 0
            and 0 for a special token.
        truncated: Whether the text was cut to the model's limit.
    """

    tokens: List[str]
    ids: NDArray[np.int32]
    type_ids: NDArray[np.int32]
    offsets: NDArray[np.int32]
    truncated: bool

    def __len__(self) -> int:
        return len(self.tokens)


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

    @classmethod
    def empty(cls, count: int, size: int) -> Embeddings:
        """Return ``count`` rows to be filled in."""
        return cls(
            np.empty((count, size), np.float32), np.empty(count, np.int32), np.empty(count, bool)
        )

    @property
    def shape(self) -> Tuple[int, int]:
        """(B, E)."""
        return (self.vectors.shape[0], self.vectors.shape[1])

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """Always float32."""
        return self.vectors.dtype

    def to_float16(self) -> NDArray[np.float16]:
        """Return the vectors in half their size, [B, E].

        Raises:
            ValueError: A component is beyond float16's range of 65,504.
        """
        return _vectors.to_float16(self.vectors)

    def to_int8(self) -> Int8Vectors:
        """Return the vectors in a quarter of their size; what it costs stands at Int8Vectors."""
        return _vectors.to_int8(self.vectors)

    def to_binary(self) -> BinaryVectors:
        """Return the sign of each component, in a 32nd of the vectors' size."""
        return _vectors.to_binary(self.vectors)

    def to_base64(self) -> List[str]:
        """Return each row's little-endian float32 bytes in base64, as JSON interfaces take them."""
        return _vectors.to_base64(self.vectors)

    def tolist(self) -> List[List[float]]:
        """Return the rows as lists."""
        return self.vectors.tolist()  # type: ignore[no-any-return]

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
