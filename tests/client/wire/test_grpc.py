"""gRPC answers as results: no channel here."""

import pytest
from bertron_client import ProtocolError
from bertron_client._wire import grpc
from bertron_client._wire.operations import Infer, Output, SharedSlice
from tritonclient.grpc import service_pb2


def answer_of(*contents):
    """An answer of two outputs, and what came with them."""
    message = service_pb2.ModelInferResponse(raw_output_contents=contents)
    message.outputs.add(name="EMBEDDING", datatype="FP32", shape=[1, 2])
    message.outputs.add(name="TOKEN_COUNT", datatype="INT32", shape=[1, 1])
    return message


@pytest.mark.parametrize("contents", [(), (b"12345678",), (b"12345678", b"1234", b"")])
def test_outputs_without_a_content_each_are_a_protocol_error(contents):
    operation = Infer("m", [], {"EMBEDDING": None, "TOKEN_COUNT": None})
    words = rf"2 outputs came with {len(contents)} contents \(somewhere\)"
    with pytest.raises(ProtocolError, match=words):
        grpc.decode(operation, answer_of(*contents), "somewhere")


@pytest.mark.parametrize("contents", [(b"1234",), (b"", b"1234")])
def test_an_output_in_shared_memory_has_an_empty_content_or_none(contents):
    operation = Infer("m", [], {"EMBEDDING": SharedSlice("r", 0, 8), "TOKEN_COUNT": None})
    assert grpc.decode(operation, answer_of(*contents), "somewhere") == {
        "EMBEDDING": Output("FP32", (1, 2), None),
        "TOKEN_COUNT": Output("INT32", (1, 1), b"1234"),
    }
