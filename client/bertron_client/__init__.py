"""The Bertron client: texts in, sentence embeddings out. Needs numpy and tritonclient only."""

from __future__ import annotations

from ._client import Client
from ._exceptions import (
    BertronError,
    DeadlineExceededError,
    InvalidInputError,
    ModelNotFoundError,
    OverloadedError,
    ProtocolError,
    ServerError,
    ServerUnavailableError,
)
from ._models import Embeddings, ServerInfo

__all__ = [
    "BertronError",
    "Client",
    "DeadlineExceededError",
    "Embeddings",
    "InvalidInputError",
    "ModelNotFoundError",
    "OverloadedError",
    "ProtocolError",
    "ServerError",
    "ServerInfo",
    "ServerUnavailableError",
]
