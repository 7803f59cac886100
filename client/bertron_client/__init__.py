"""The Bertron client: texts in, sentence embeddings out. Needs numpy and tritonclient only."""

from __future__ import annotations

from ._async_client import AsyncClient
from ._client import Client
from ._exceptions import (
    AuthenticationError,
    BertronError,
    DeadlineExceededError,
    InvalidInputError,
    ModelNotFoundError,
    OverloadedError,
    ProtocolError,
    ServerError,
    ServerUnavailableError,
)
from ._models import Embedding, Embeddings, ModelStatistics, ServerInfo, TokenizedText
from ._retry import RetryPolicy
from ._tls import Tls
from ._vectors import BinaryVectors, Int8Vectors

__all__ = [
    "AsyncClient",
    "AuthenticationError",
    "BertronError",
    "BinaryVectors",
    "Client",
    "DeadlineExceededError",
    "Embedding",
    "Embeddings",
    "Int8Vectors",
    "InvalidInputError",
    "ModelNotFoundError",
    "ModelStatistics",
    "OverloadedError",
    "ProtocolError",
    "RetryPolicy",
    "ServerError",
    "ServerInfo",
    "ServerUnavailableError",
    "Tls",
    "TokenizedText",
]
