"""Everything the client raises, except TypeError and ValueError for a wrongly written call.

BertronError
├── InvalidInputError        also ValueError; ``.index`` of the text where one is to blame
├── DeadlineExceededError    also TimeoutError
├── ServerUnavailableError   also ConnectionError: refused, reset, stopping
├── OverloadedError          the server's queue is full, or the request waited in it too long
├── ModelNotFoundError
├── ServerError              the server failed while it computed
└── ProtocolError            an answer that cannot be right: not KServe v2, wrong shape, NaN
"""

from __future__ import annotations

import re
from typing import Optional, Type


class BertronError(Exception):
    """Base of all errors of this client."""


class InvalidInputError(BertronError, ValueError):
    """The texts or options cannot be served, however often they are sent.

    Attributes:
        index: Position of the offending text in the list given to ``embed``, or None.
    """

    def __init__(self, message: str, *, index: Optional[int] = None) -> None:
        super().__init__(message)
        self.index = index


class DeadlineExceededError(BertronError, TimeoutError):
    """The call's ``timeout_s`` passed before the answer was complete."""


class ServerUnavailableError(BertronError, ConnectionError):
    """No server at the url, a connection lost, or a server that is starting or stopping."""


class OverloadedError(BertronError):
    """The server turned the request away: its queue is full, or the wait in it too long."""


class ModelNotFoundError(BertronError):
    """The server does not know the model."""


class ServerError(BertronError):
    """The server failed while it worked on the request."""


class ProtocolError(BertronError):
    """The answer is not one that a Bertron server gives."""


# Triton server has one status for a full queue, an expired wait and a stopping server; only its
# text tells them apart. These are the words of 2.51, seen on a real server.
_QUEUE_FULL = re.compile(r"maximum queue size", re.IGNORECASE)
_QUEUE_EXPIRED = re.compile(r"request timeout expired", re.IGNORECASE)
_UNKNOWN_MODEL = re.compile(r"unknown model", re.IGNORECASE)
_ENSEMBLE_PREFIX = re.compile(r"^in ensemble '[^']*', ")


def error_from_server(kind: Type[BertronError], message: str, where: str) -> BertronError:
    """Make the most specific error of what the server said.

    Args:
        kind: What the status alone says.
        message: The server's own words.
        where: Url and model, for the reader of the message.
    """
    if issubclass(kind, ServerUnavailableError) and (
        _QUEUE_FULL.search(message) or _QUEUE_EXPIRED.search(message)
    ):
        kind = OverloadedError
    elif issubclass(kind, InvalidInputError) and _UNKNOWN_MODEL.search(message):
        kind = ModelNotFoundError  # status 400 in some versions of Triton server
    words = _ENSEMBLE_PREFIX.sub("", message.strip())
    return kind(f"{words or 'no reason given'} ({where})")
