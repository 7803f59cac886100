"""What a request can be refused for, and nothing else: each class is one answer of the server."""

import reprlib
from typing import Any

_SHORT = reprlib.Repr()  # 30 characters, nothing nested
_SHORT.maxlevel = 1


def quoted(value: Any) -> str:
    """A caller's value as a message quotes it: its repr, shortened in the middle."""
    return _SHORT.repr(value)


class RequestError(Exception):
    """Answers one request with an error; its neighbours in the batch are not touched."""


class InvalidInputError(RequestError):
    """The request's input is wrong (HTTP 400, gRPC INVALID_ARGUMENT)."""


class InferenceError(RequestError):
    """The model could not answer a valid request (HTTP 500, gRPC INTERNAL)."""


class ExpiredError(RequestError):
    """The request waited longer than it may (HTTP 503, gRPC UNAVAILABLE)."""


class OverloadedError(RequestError):
    """The request would be answered too late (HTTP 503, gRPC UNAVAILABLE)."""
