"""What bert-as-service takes for a batch of texts: its checks, and its ``|||`` for pairs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, List, Optional, Sequence, Tuple

from .._exceptions import InvalidInputError

PAIR_TOKEN = "|||"  # noqa: S105 - a separator
# The last separator splits, and no newline may stand anywhere: so it was in 1.10.
_PAIR = re.compile(r"(.+) \|\|\| (.+)")
# How messages name a text: "texts[3]", "text_pairs[3]", "text 3".
_TEXT_INDEX = re.compile(r"(\btext(?:s|_pairs)?[ \[])(\d+)\b")


@dataclass(frozen=True)
class Part:
    """The texts of a batch that can be asked for together: those alone, or those in pairs."""

    rows: Sequence[int]  # of each text in the batch
    texts: List[Any]  # str, or a list of tokens
    text_pairs: Optional[List[Any]]


@dataclass(frozen=True)
class Batch:
    """One call's texts, checked."""

    size: int
    is_tokenized: bool
    parts: Tuple[Part, ...]  # one, or two where some texts are pairs and some are not


def read_batch(texts: Any, *, is_tokenized: bool) -> Batch:
    """Check ``texts`` as 1.10 did, and tell pairs from single texts.

    Raises:
        TypeError: ``texts`` is not a list, or an element not a str (a list of str when tokenized).
        InvalidInputError: Nothing in it, or a blank text or token. Also a ValueError.
    """
    _check_list(texts, "texts")
    if is_tokenized:
        for index, tokens in enumerate(texts):
            _check_list(tokens, f"texts[{index}]", index)
            _check_strings(tokens, f"texts[{index}]", index)
    else:
        _check_strings(texts, "texts")
    split = _split_tokens if is_tokenized else _split_text
    both = [split(text) for text in texts]
    alone = [row for row, (_, second) in enumerate(both) if second is None]
    paired = [row for row, (_, second) in enumerate(both) if second is not None]
    parts = []
    if alone:
        parts.append(Part(alone, [both[row][0] for row in alone], None))
    if paired:
        parts.append(
            Part(paired, [both[row][0] for row in paired], [both[row][1] for row in paired])
        )
    return Batch(len(texts), bool(is_tokenized), tuple(parts))


def with_batch_index(error: InvalidInputError, part: Part) -> InvalidInputError:
    """Return ``error`` naming the text by its row in the batch, not in the part."""
    if error.index is None or not 0 <= error.index < len(part.rows):
        return error
    row = part.rows[error.index]

    def renamed(match: re.Match[str]) -> str:
        return match.group(1) + str(row if int(match.group(2)) == error.index else match.group(2))

    return InvalidInputError(_TEXT_INDEX.sub(renamed, str(error)), index=row)


def _split_text(text: str) -> Tuple[str, Optional[str]]:
    match = _PAIR.fullmatch(text.strip())
    return (text, None) if match is None else (match.group(1), match.group(2))


def _split_tokens(tokens: List[str]) -> Tuple[List[str], Optional[List[str]]]:
    """The first separator splits; one at the end is dropped, as there is no second text."""
    if PAIR_TOKEN not in tokens:
        return tokens, None
    at = tokens.index(PAIR_TOKEN)
    return tokens[:at], tokens[at + 1 :] or None


def _check_list(value: Any, name: str, index: Optional[int] = None) -> None:
    if not isinstance(value, list):
        raise TypeError(f"{name} is a {type(value).__name__}, a list is wanted")
    if not value:
        raise InvalidInputError(f"{name} is empty, at least one element is wanted", index=index)


def _check_strings(values: List[Any], name: str, index: Optional[int] = None) -> None:
    """Check elements; ``index`` is that of the text they belong to, None where each is a text."""
    for number, value in enumerate(values):
        if not isinstance(value, str):
            raise TypeError(f"{name}[{number}] is a {type(value).__name__}, a str is wanted")
        if not value.strip():
            raise InvalidInputError(
                f"{name}[{number}] is {value!r}, a string with something in it is wanted",
                index=number if index is None else index,
            )
