"""What the caller gives as texts: any ordered collection to a list, and its elements to UTF-8."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from typing import Any, Iterable, Iterator, List, Sequence

import numpy as np

from ._exceptions import InvalidInputError

_COLUMNS_SHOWN = 8  # column names in a message; a table can have thousands


def collect_texts(texts: Iterable[str], name: str) -> List[Any]:
    """Return ``texts`` as a list, whatever they came in.

    A list, tuple or generator, a numpy array, a pandas or polars Series, an Arrow Array or
    ChunkedArray. pandas, polars and Arrow are known by their methods and never imported. The
    elements are not looked at.

    Raises:
        TypeError: Not an ordered collection of texts: a single str above all, a table, a set.
    """
    _refuse_no_texts(texts, name)
    if hasattr(type(texts), "to_pylist"):  # Arrow, whose own elements are Scalars
        return list(texts.to_pylist())  # type: ignore[attr-defined]
    if isinstance(texts, np.ndarray) and texts.ndim == 1:
        return list(texts.tolist())  # str, where the array's own elements are numpy.str_
    return list(_iterator(texts, name))


def iterate_texts(texts: Iterable[Any], name: str) -> Iterator[Any]:
    """Return an iterator over texts that may have no end.

    Raises:
        TypeError: As ``collect_texts``.
    """
    _refuse_no_texts(texts, name)
    if hasattr(type(texts), "to_pylist"):
        return iter(texts.to_pylist())  # type: ignore[attr-defined]
    return _iterator(texts, name)


def _iterator(texts: Iterable[Any], name: str) -> Iterator[Any]:
    try:
        return iter(texts)
    except TypeError as error:
        kind = type(texts).__name__
        raise TypeError(f"{name} is a {kind}, a list of str is wanted ({error})") from None


def _refuse_no_texts(texts: Any, name: str) -> None:
    """Refuse what can be iterated over, but not as texts in an order."""
    kind = type(texts).__name__
    if isinstance(texts, (str, bytes, bytearray)):
        raise TypeError(f"{name} is a single {kind}, a list of str is wanted; write [text]")
    if isinstance(texts, (Mapping, Set)):
        raise TypeError(f"{name} is a {kind}, which has no order; give a list")
    _refuse_table(texts, name)


def _refuse_table(texts: Any, name: str) -> None:
    """Refuse a DataFrame or Table: as an iterable some of them are their column names.

    The type is asked, for an attribute of a pandas Series may be one of its labels.
    """
    kind = type(texts)
    if not hasattr(kind, "__len__"):
        return
    if hasattr(kind, "column_names"):  # Arrow, whose ``columns`` are the data
        columns = [str(column) for column in texts.column_names]
    elif hasattr(kind, "columns"):
        columns = [str(column) for column in texts.columns]
    else:
        return
    shown = ", ".join(columns[:_COLUMNS_SHOWN]) or "none"
    more = f" and {len(columns) - _COLUMNS_SHOWN} more" if len(columns) > _COLUMNS_SHOWN else ""
    example = columns[0] if columns else "text"
    raise TypeError(
        f"{name} is a {kind.__name__} with the columns {shown}{more}; give one of them, "
        f"as in table[{example!r}]"
    )


def encode_texts(texts: Sequence[Any], name: str, first: int = 0) -> List[bytes]:
    """Return each text as UTF-8.

    Args:
        texts: What the caller gave.
        name: Of the argument.
        first: Place of the first of them in the caller's list.

    Raises:
        InvalidInputError: An element is not a str (None and NaN too), or holds a lone surrogate.
    """
    encoded = []
    for index, text in enumerate(texts, first):
        if not isinstance(text, str):
            raise InvalidInputError(
                f"{name}[{index}] is {type(text).__name__}, a str is wanted", index=index
            )
        try:
            encoded.append(text.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise InvalidInputError(
                f"{name}[{index}] holds the lone surrogate U+{ord(text[error.start]):04X} at "
                f"character {error.start}, which UTF-8 cannot carry",
                index=index,
            ) from None
    return encoded


def encode_tokens(texts: Sequence[Any], name: str, first: int = 0) -> List[bytes]:
    """Return each list of tokens as a JSON array in UTF-8, the form that the server takes.

    Args:
        texts: What the caller gave.
        name: Of the argument.
        first: Place of the first of them in the caller's list.

    Raises:
        InvalidInputError: An element is not a list of str, or holds a lone surrogate.
    """
    encoded = []
    for index, tokens in enumerate(texts, first):
        if not isinstance(tokens, (list, tuple)):
            raise InvalidInputError(
                f"{name}[{index}] is {type(tokens).__name__}, a list of tokens is wanted",
                index=index,
            )
        for place, token in enumerate(tokens):
            if not isinstance(token, str):
                raise InvalidInputError(
                    f"{name}[{index}][{place}] is {type(token).__name__}, a str is wanted",
                    index=index,
                )
        try:
            encoded.append(json.dumps(list(tokens), ensure_ascii=False).encode("utf-8"))
        except UnicodeEncodeError:
            raise InvalidInputError(
                f"{name}[{index}] holds a lone surrogate, which UTF-8 cannot carry", index=index
            ) from None
    return encoded
