"""Other forms of vectors: shorter, of length 1, or in fewer bits. Pure functions of arrays.

B vectors of E components, [B, E] float32 in C order, all finite.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import List, Optional

import numpy as np
from numpy.typing import NDArray

from ._arguments import checked_whole_number

_INT8_LARGEST = 127  # and not -128, so that a vector and its negative have the same codes
_FLOAT16_LARGEST = 65504.0
_ONES_IN_BYTE = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)


@dataclass(frozen=True, eq=False)
class Int8Vectors:
    """Vectors in a quarter of their size.

    Each component is off by at most half of its row's scale, which is 1/254 of the row's largest
    component, and by 2**-16 of the scale more for float32's own rounding.

    Attributes:
        codes: [B, E] int8, -127 to 127.
        scales: [B] float32, what a code of 1 stands for; 0 for a row of zeros.
    """

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]

    def to_float32(self) -> NDArray[np.float32]:
        """Return the vectors that the codes stand for, [B, E]."""
        return np.multiply(self.codes, self.scales[:, np.newaxis], dtype=np.float32)


@dataclass(frozen=True, eq=False)
class BinaryVectors:
    """The sign of each component, one bit each.

    Attributes:
        bits: [B, ceil(E/8)] uint8. Component 0 is the highest bit of byte 0 (the bit order of
            ``numpy.packbits``, "big"); 1 where the component is above 0. The last byte is filled
            up with 0.
        size: E.
    """

    bits: NDArray[np.uint8]
    size: int

    def hamming_distance(self, other: BinaryVectors) -> NDArray[np.int32]:
        """Return how many signs differ, [B, B of ``other``].

        Raises:
            ValueError: The two have vectors of different size.
        """
        if self.size != other.size:
            raise ValueError(
                f"these are vectors of {self.size} components, the others of {other.size}"
            )
        distances = np.empty((len(self.bits), len(other.bits)), np.int32)
        for row, bits in enumerate(self.bits):  # one at a time: all pairs of bytes would not fit
            np.sum(_ONES_IN_BYTE[bits ^ other.bits], axis=1, dtype=np.int32, out=distances[row])
        return distances


def to_int8(vectors: NDArray[np.float32]) -> Int8Vectors:
    """Return the vectors with one symmetric scale a row, its largest component being 127.

    Raises:
        ValueError: A component is not finite.
    """
    largest = np.max(np.abs(vectors), axis=1, initial=0.0)
    if not np.isfinite(largest).all():
        raise ValueError(f"vectors[{int(np.argmin(np.isfinite(largest)))}] is not finite")
    exact = largest.astype(np.float64) / _INT8_LARGEST
    scales = exact.astype(np.float32)
    # Rounded up, so that no code is beyond 127, however few bits a tiny scale has.
    scales = np.where(scales < exact, np.nextafter(scales, np.float32(np.inf)), scales)
    divisors = np.where(scales > 0, scales, np.float32(1))
    codes = np.divide(vectors, divisors[:, np.newaxis], dtype=np.float32)
    return Int8Vectors(np.rint(codes, out=codes).astype(np.int8), scales)


def to_binary(vectors: NDArray[np.float32]) -> BinaryVectors:
    """Return the signs of the vectors."""
    return BinaryVectors(np.packbits(vectors > 0, axis=1), vectors.shape[1])


def to_float16(vectors: NDArray[np.float32]) -> NDArray[np.float16]:
    """Return the vectors rounded to float16.

    Raises:
        ValueError: A component is beyond float16's range.
    """
    beyond = np.abs(vectors) > _FLOAT16_LARGEST
    if beyond.any():
        row, column = (int(place) for place in np.argwhere(beyond)[0])
        raise ValueError(
            f"vectors[{row}, {column}] is {vectors[row, column]:g}, float16 ends at "
            f"{_FLOAT16_LARGEST:.0f}; keep float32 or pass normalize=True"
        )
    return vectors.astype(np.float16)


def to_base64(vectors: NDArray[np.float32]) -> List[str]:
    """Return each vector's little-endian float32 bytes in base64."""
    rows = np.ascontiguousarray(vectors, dtype="<f4")
    return [base64.b64encode(row.tobytes()).decode("ascii") for row in rows]


def cut_and_normalize(
    vectors: NDArray[np.float32], normalize: Optional[bool], dimensions: Optional[int]
) -> NDArray[np.float32]:
    """Return the first components of the vectors, then each vector at length 1.

    Args:
        vectors: [B, E]; never written to, and returned as they are where nothing is asked.
        normalize: Whether to; norms are taken in float64. A zero vector stays zero.
        dimensions: How many components to keep, 1 to E; None keeps all.

    Raises:
        TypeError: ``dimensions`` is not a whole number.
        ValueError: ``dimensions`` is not between 1 and E.
    """
    if dimensions is not None:
        kept = checked_dimensions(dimensions, vectors.shape[1])
        vectors = vectors[:, :kept].copy()  # a view would keep all of the components in memory
    if not normalize:
        return vectors
    squares = np.einsum("be,be->b", vectors, vectors, dtype=np.float64)
    norms = np.sqrt(np.where(squares > 0, squares, 1.0))
    # Divided in float64, a buffer at a time, and rounded once.
    return np.divide(
        vectors,
        norms[:, np.newaxis],
        out=np.empty(vectors.shape, np.float32),
        dtype=np.float64,
        casting="same_kind",
    )


def checked_dimensions(dimensions: int, size: int) -> int:
    """Return ``dimensions`` if a vector of ``size`` components has so many.

    Raises:
        TypeError: It is not a whole number.
        ValueError: It is not between 1 and ``size``.
    """
    kept = checked_whole_number("dimensions", dimensions)
    if not 1 <= kept <= size:
        raise ValueError(f"dimensions is {kept}, the vectors have {size}; 1 to {size} is wanted")
    return kept
