"""The binary form of tensors."""

from __future__ import annotations

import math
import struct
from typing import Any, List, Mapping, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from .._exceptions import ProtocolError
from .operations import Output

# An answer to the largest request of the largest BERT is below 1 MB; a server that announces more
# than this is not ours, and its word must not decide how much memory is taken.
MAX_ANSWER_BYTES = 64 * 1024 * 1024

_DTYPES = {"FP32": np.dtype("<f4"), "INT32": np.dtype("<i4"), "BOOL": np.dtype("?")}


def bytes_tensor(elements: Sequence[bytes]) -> bytes:
    """Return the binary form of a BYTES tensor: each element behind its length, uint32."""
    parts = []
    for element in elements:
        parts.append(struct.pack("<I", len(element)))
        parts.append(element)
    return b"".join(parts)


def _output(
    outputs: Mapping[str, Output], name: str, datatype: str, shape: Tuple[int, ...]
) -> Output:
    """One output, or a ProtocolError that says what differs; -1 in ``shape`` is any size."""
    output = outputs.get(name)
    if output is None:
        raise ProtocolError(f"the answer has no {name}, only {sorted(outputs)}")
    fits = len(output.shape) == len(shape) and all(
        wanted in (size, -1) and size >= 0 for size, wanted in zip(output.shape, shape)
    )
    if output.datatype != datatype or not fits:
        raise ProtocolError(
            f"{name} is {output.datatype} {list(output.shape)}, {datatype} {list(shape)} is wanted"
        )
    return output


def array_of(
    outputs: Mapping[str, Output], name: str, datatype: str, shape: Tuple[int, ...]
) -> NDArray[Any]:
    """Return one output as an array.

    Args:
        outputs: The answer.
        name: Of the tensor.
        datatype: KServe v2's name of the wanted type.
        shape: The wanted shape; -1 takes any size.

    Raises:
        ProtocolError: It is missing, of another type or shape, or too short.
    """
    output = _output(outputs, name, datatype, shape)
    dtype = _DTYPES[datatype]
    expected = math.prod(output.shape) * dtype.itemsize
    if len(output.data) != expected:
        raise ProtocolError(
            f"{name} {list(output.shape)} has {len(output.data)} bytes, {expected} are wanted"
        )
    return np.frombuffer(output.data, dtype=dtype).reshape(output.shape)


def strings_of(outputs: Mapping[str, Output], name: str, shape: Tuple[int, ...]) -> List[str]:
    """Return the elements of a BYTES output, row after row.

    Raises:
        ProtocolError: It is missing, of another type or shape, cut off, or not UTF-8.
    """
    output = _output(outputs, name, "BYTES", shape)
    data = bytes(output.data)
    strings = []
    offset = 0
    try:
        while offset < len(data):
            (length,) = struct.unpack_from("<I", data, offset)
            offset += 4 + length
            if offset > len(data):
                raise ValueError(f"an element ends {offset - len(data)} bytes behind the tensor")
            strings.append(data[offset - length : offset].decode("utf-8"))
    except (ValueError, struct.error) as error:
        raise ProtocolError(f"{name} is not a tensor of strings: {error}") from error
    if len(strings) != math.prod(output.shape):
        raise ProtocolError(f"{name} {list(output.shape)} has {len(strings)} elements")
    return strings
