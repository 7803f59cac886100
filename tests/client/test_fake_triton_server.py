"""The fake server speaks what Triton's own clients expect, so that tests of ours mean something."""

import importlib
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import pytest
from fake_triton_model import MODEL, id_of, vector_of
from tritonclient.utils import InferenceServerException


@pytest.fixture
def library(protocol):
    """tritonclient.http or tritonclient.grpc."""
    if protocol == "http":
        pytest.importorskip("geventhttpclient", reason="tritonclient's HTTP part is not installed")
    return importlib.import_module(f"tritonclient.{protocol}")


@pytest.fixture
def triton(server, protocol, library):
    address = server.url(protocol).partition("://")[2]
    with library.InferenceServerClient(address) as client:
        yield client


def text_input(library, texts, name="TEXT"):
    tensor = library.InferInput(name, [len(texts), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text.encode()] for text in texts], dtype=object))
    return tensor


def as_dict(library, answer):
    if library.__name__.endswith("http"):
        return answer
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(answer, preserving_proto_field_name=True)


def test_embeddings(triton, library):
    answer = triton.infer(MODEL, [text_input(library, ["a b", "c"])])
    np.testing.assert_array_equal(answer.as_numpy("EMBEDDING"), [vector_of("a b"), vector_of("c")])
    np.testing.assert_array_equal(answer.as_numpy("TOKEN_COUNT"), [[4], [3]])


def test_tokens(triton, library):
    outputs = ["TOKENS", "OFFSETS", "input_ids", "token_type_ids", "attention_mask"]
    answer = triton.infer(
        "tokenizer",
        [text_input(library, ["ab  c", "d"]), text_input(library, ["e", "f g"], "TEXT_PAIR")],
        outputs=[library.InferRequestedOutput(name) for name in outputs],
    )
    assert answer.as_numpy("TOKENS").tolist() == [
        [b"[CLS]", b"ab", b"c", b"[SEP]", b"e", b"[SEP]"],
        [b"[CLS]", b"d", b"[SEP]", b"f", b"g", b"[SEP]"],
    ]
    assert answer.as_numpy("OFFSETS")[0].tolist() == [
        [0, 0],
        [0, 2],
        [4, 5],
        [0, 0],
        [0, 1],
        [0, 0],
    ]
    assert answer.as_numpy("input_ids")[1, 1] == id_of("d")
    assert answer.as_numpy("token_type_ids").tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1]]
    assert answer.as_numpy("attention_mask").all()
    assert answer.as_numpy("TOKEN_COUNT") is None


def test_statistics_and_configuration(triton, library):
    for texts in (["a"], ["b", "c"], ["d", "e"]):
        triton.infer(MODEL, [text_input(library, texts)])
    triton.infer("tokenizer", [text_input(library, ["f"])])
    statistics = as_dict(library, triton.get_inference_statistics())
    by_name = {model["name"]: model for model in statistics["model_stats"]}
    assert list(by_name) == [MODEL, "tokenizer", "bert"]
    assert int(by_name["tokenizer"]["execution_count"]) == 4
    assert int(by_name["tokenizer"]["inference_count"]) == 6
    assert {
        int(b["batch_size"]): int(b["compute_infer"]["count"])
        for b in by_name["bert"]["batch_stats"]
    } == {
        1: 1,
        2: 2,
    }
    config = as_dict(library, triton.get_model_config(MODEL))
    config = config.get("config", config)
    assert [step["model_name"] for step in config["ensemble_scheduling"]["step"]] == [
        "tokenizer",
        "bert",
    ]
    assert as_dict(library, triton.get_model_metadata(MODEL))["versions"] == ["1"]


def test_shared_memory(triton, library, server):
    size = 4096
    memory = SharedMemory(create=True, size=size)
    try:
        data = b"\x03\0\0\0a b"
        memory.buf[64 : 64 + len(data)] = data
        triton.register_system_shared_memory("here", memory.name, size - 64, offset=64)
        text = library.InferInput("TEXT", [1, 1], "BYTES")
        text.set_shared_memory("here", len(data))
        vector = library.InferRequestedOutput("EMBEDDING")
        vector.set_shared_memory("here", 64, offset=1024)
        answer = triton.infer(
            MODEL, [text], outputs=[library.InferRequestedOutput("TOKEN_COUNT"), vector]
        )
        assert answer.as_numpy("TOKEN_COUNT") == 4
        np.testing.assert_array_equal(
            np.frombuffer(memory.buf[1088 : 1088 + 64], np.float32), vector_of("a b")
        )
        assert len(as_dict(library, triton.get_system_shared_memory_status())) == 1
        triton.unregister_system_shared_memory("here")
        assert not server.behaviour.regions
        with pytest.raises(InferenceServerException, match="Unable to find shared memory region"):
            triton.infer(MODEL, [text])
    finally:
        memory.close()
        memory.unlink()


def test_refusals(triton, server):
    server.behaviour.restricted = {"statistics"}
    with pytest.raises(InferenceServerException, match="is restricted, expecting header"):
        triton.get_inference_statistics()
    triton.get_inference_statistics(headers={"triton-grpc-protocol-admin-key": "x"})
    server.behaviour.required_token = "secret"  # noqa: S105
    with pytest.raises(InferenceServerException, match="token is wanted"):
        triton.get_model_config(MODEL)
    triton.get_model_config(MODEL, headers={"authorization": "Bearer secret"})
    assert [arrival.what for arrival in server.behaviour.arrivals] == [
        *["statistics"] * 2,
        *["config"] * 2,
    ]


def test_compression(triton, library, server, protocol):
    options = (
        {"request_compression_algorithm": "gzip", "response_compression_algorithm": "gzip"}
        if protocol == "http"
        else {"compression_algorithm": "gzip"}
    )
    answer = triton.infer(MODEL, [text_input(library, ["a b", "c"])], **options)
    np.testing.assert_array_equal(answer.as_numpy("EMBEDDING"), [vector_of("a b"), vector_of("c")])
