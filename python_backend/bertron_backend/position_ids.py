"""Each token's row in the position table, computed on the host."""

from __future__ import annotations

import dataclasses

import numpy as np

from bertron_backend.packing import IntArray, PackedBatch


@dataclasses.dataclass(frozen=True)
class PositionNumbering:
    """How a model numbers its positions: the attributes of the same names of ``Bert``.

    Attributes:
        position_offset: 0 where a text's first token has row 0; in RoBERTa the first row that a
            token takes which is not the padding token.
        pad_token_id: Read where there is an offset.
    """

    position_offset: int
    pad_token_id: int

    def of(self, batch: PackedBatch) -> IntArray:
        """[T] int32, equal to what ``Bert._position_ids`` computes on the device."""
        starts = batch.cu_seqlens[:-1]
        if self.position_offset == 0:
            index = np.arange(len(batch.input_ids), dtype=np.int32)
            return (
                index if len(starts) == 1 else index - np.repeat(starts, np.diff(batch.cu_seqlens))
            )
        lengths = np.diff(batch.cu_seqlens)
        # A text that spells the padding token gives it the row of its own id, and does not count
        # it: transformers' create_position_ids_from_input_ids.
        counted = batch.input_ids != self.pad_token_id
        before = np.zeros(len(counted) + 1, dtype=np.int32)  # counted tokens before each, over all
        np.cumsum(counted, dtype=np.int32, out=before[1:])
        ordinal = before[1:] - np.repeat(before[starts], lengths)  # 1-based within its text
        rows: IntArray = ordinal * counted + np.int32(self.position_offset - 1)
        return rows
