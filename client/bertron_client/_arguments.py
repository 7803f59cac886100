"""What a wrongly written call is told: the argument, what came and what is wanted."""

from __future__ import annotations

import operator
from typing import Any


def check_type(name: str, value: object, wanted: str, *kinds: Any) -> None:
    """Refuse a value that cannot be meant for this argument.

    Args:
        name: Of the argument.
        value: Never shown: it may be a secret.
        wanted: What is, in words.
        kinds: The same as types.

    Raises:
        TypeError: The value is none of these.
    """
    if not isinstance(value, kinds):
        raise TypeError(f"{name} is {type(value).__name__}, {wanted} is wanted")


def checked_whole_number(name: str, value: Any) -> int:
    """Return ``value`` as an int.

    Raises:
        TypeError: It is not a whole number; True and False are none either.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} is {value!r}, a whole number is wanted")
    return operator.index(value)
