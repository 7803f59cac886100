"""Everything the client raises, except TypeError and ValueError for a wrongly written call.

BertronError
├── InvalidInputError        also ValueError; ``.index`` of the text where one is to blame
├── DeadlineExceededError    also TimeoutError
├── ServerUnavailableError   also ConnectionError: refused, reset, stopping; retried
├── OverloadedError          more waits at the server than the request has time for; retried
├── AuthenticationError      the server does not accept this caller, or is not who it should be
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
    """No server at the url, a connection lost, or a server that is starting or stopping.

    Attributes:
        retry_after_s: When the server wants to be asked again, where it said so.
    """

    retry_after_s: Optional[float] = None


class OverloadedError(BertronError):
    """The server turned the request away: its queue is full, or the wait in it too long.

    Attributes:
        retry_after_s: When the server wants to be asked again, where it said so.
    """

    retry_after_s: Optional[float] = None


class AuthenticationError(BertronError):
    """The server does not accept this caller, or its certificate is not one to trust."""


class ModelNotFoundError(BertronError):
    """The server does not know the model."""


class ServerError(BertronError):
    """The server failed while it worked on the request."""


class ProtocolError(BertronError):
    """The answer is not one that a Bertron server gives."""


# Triton server has one status for a full queue, an expired wait and a stopping server; only its
# text tells them apart. These are the words of 2.51, seen on a real server, and Bertron's own.
_OVERLOADED = re.compile(
    r"maximum queue size|request timeout expired|the server is overloaded", re.IGNORECASE
)
RESTRICTED = re.compile(r"(API|protocol) is restricted", re.IGNORECASE)  # over HTTP, over gRPC
_UNKNOWN_MODEL = re.compile(r"unknown model", re.IGNORECASE)
_ENSEMBLE_PREFIX = re.compile(r"^in ensemble '[^']*', ")


def error_from_server(
    kind: Type[BertronError], message: str, where: str, retry_after_s: Optional[float] = None
) -> BertronError:
    """Make the most specific error of what the server said.

    Args:
        kind: What the status alone says.
        message: The server's own words.
        where: Url and model, for the reader of the message.
        retry_after_s: When the server wants to be asked again.
    """
    if issubclass(kind, ServerUnavailableError):
        if _OVERLOADED.search(message):
            kind = OverloadedError
        elif RESTRICTED.search(message):
            kind = AuthenticationError
    elif issubclass(kind, InvalidInputError) and _UNKNOWN_MODEL.search(message):
        kind = ModelNotFoundError  # status 400 in some versions of Triton server
    words = _ENSEMBLE_PREFIX.sub("", message.strip())
    error = kind(f"{words or 'no reason given'} ({where})")
    if isinstance(error, (ServerUnavailableError, OverloadedError)):
        error.retry_after_s = retry_after_s
    return error
