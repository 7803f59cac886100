"""One batch asked for, and its rows put together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence

import numpy as np
from numpy.typing import NDArray

from .._client import Client
from .._exceptions import InvalidInputError
from ._deadline import Deadline
from ._texts import Batch, Part, with_batch_index


@dataclass(frozen=True)
class Answer:
    """What came for a batch of B texts."""

    vectors: NDArray[np.float32]  # [B, E]
    tokens: Optional[List[List[str]]]  # None where none were asked for
    cut: Sequence[int]  # texts that were longer than the model reads


def ask(client: Client, batch: Batch, *, show_tokens: bool, deadline: Deadline) -> Answer:
    """Ask for every text of the batch; single texts and pairs are two calls under one deadline.

    Raises:
        BertronError: As the client's ``embed``, with ``.index`` counted in the batch.
    """
    rows: List[int] = []
    vectors: List[NDArray[np.float32]] = []
    tokens: Dict[int, List[str]] = {}
    cut: List[int] = []
    for part in batch.parts:
        try:
            answer = client.embed(
                part.texts,
                text_pairs=part.text_pairs,
                is_pretokenized=batch.is_tokenized,
                timeout_s=deadline.left_s(),
            )
            if show_tokens:
                for row, found in enumerate(_tokens(client, batch, part, deadline)):
                    tokens[part.rows[row]] = found
        except InvalidInputError as error:
            raise with_batch_index(error, part) from error
        rows += part.rows
        vectors.append(answer.vectors)
        cut += [part.rows[row] for row in np.flatnonzero(answer.truncated)]
    if len(vectors) == 1:
        joined = vectors[0]
    else:
        joined = np.concatenate(vectors)
        joined[rows] = joined.copy()
    shown = [tokens[row] for row in range(batch.size)] if show_tokens else None
    return Answer(joined, shown, sorted(cut))


def _tokens(client: Client, batch: Batch, part: Part, deadline: Deadline) -> List[List[str]]:
    found = client.tokenize(
        part.texts,
        text_pairs=part.text_pairs,
        is_pretokenized=batch.is_tokenized,
        timeout_s=deadline.left_s(),
    )
    return [text.tokens for text in found]
