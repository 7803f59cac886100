"""The binary form of tensors."""

import struct

import pytest
from bertron_client import ProtocolError
from bertron_client._wire.operations import Output
from bertron_client._wire.tensors import array_of, bytes_tensor, strings_of
from hypothesis import given
from hypothesis import strategies as st


def test_the_binary_form_of_texts():
    assert bytes_tensor([b"", b"ab"]) == struct.pack("<I", 0) + struct.pack("<I", 2) + b"ab"


@given(st.lists(st.text(max_size=9), max_size=20))
def test_strings_come_back_as_they_went(strings):
    data = bytes_tensor([string.encode() for string in strings])
    outputs = {"S": Output("BYTES", (len(strings), 1), data)}
    assert strings_of(outputs, "S", (-1, 1)) == strings


@given(st.binary(max_size=30), st.integers(0, 9))
def test_any_bytes_are_strings_or_a_protocol_error(data, count):
    try:
        strings = strings_of({"S": Output("BYTES", (count,), data)}, "S", (count,))
    except ProtocolError:
        return
    assert bytes_tensor([string.encode() for string in strings]) == data
    assert len(strings) == count


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (None, "has no A"),
        (Output("FP64", (2, 2), bytes(32)), r"FP64 \[2, 2\], FP32 \[2, -1\] is wanted"),
        (Output("FP32", (3, 2), bytes(24)), r"FP32 \[3, 2\], FP32 \[2, -1\] is wanted"),
        (Output("FP32", (2,), bytes(8)), r"FP32 \[2\]"),
        (Output("FP32", (2, -1), b""), r"FP32 \[2, -1\], "),
        (Output("FP32", (2, 2), bytes(15)), "has 15 bytes, 16 are wanted"),
    ],
)
def test_another_tensor_than_the_wanted_is_refused(output, words):
    outputs = {"B": output} if output is None else {"A": output}
    with pytest.raises(ProtocolError, match=words):
        array_of(outputs, "A", "FP32", (2, -1))
