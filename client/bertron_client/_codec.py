"""Texts to requests, and answers to arrays. Pure functions, shared by every client and protocol."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from ._exceptions import BertronError, InvalidInputError, ProtocolError
from ._models import Embeddings, ServerInfo

TEXT = "TEXT"
TEXT_PAIR = "TEXT_PAIR"
EMBEDDING = "EMBEDDING"
TOKEN_COUNT = "TOKEN_COUNT"  # noqa: S105 - a tensor's name
TRUNCATED = "TRUNCATED"
OUTPUTS = (EMBEDDING, TOKEN_COUNT, TRUNCATED)

TRUNCATE_CHOICES = ("right", "left", "error")
HEADER_LENGTH = "Inference-Header-Content-Length"
# An answer to the largest request of the largest BERT is below 1 MB; a server that announces more
# than this is not ours, and its word must not decide how much memory is taken.
MAX_ANSWER_BYTES = 64 * 1024 * 1024

_DTYPES = {"FP32": np.dtype("<f4"), "INT32": np.dtype("<i4"), "BOOL": np.dtype("?")}
# How the server's messages name a text: its place in the request.
_TEXT_INDEX = re.compile(r"\btext(?:[ _]pair)? (\d+)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Request:
    """One request: at most ``max_batch_size`` texts, as UTF-8."""

    indices: Sequence[int]  # row of each text in the caller's list
    texts: List[bytes]
    text_pairs: Optional[List[bytes]]
    truncate: str

    def inputs(self) -> List[Tuple[str, List[bytes]]]:
        """Name and elements of each input tensor, all of shape [B, 1]."""
        inputs = [(TEXT, self.texts)]
        if self.text_pairs is not None:
            inputs.append((TEXT_PAIR, self.text_pairs))
        return inputs


@dataclass(frozen=True)
class Output:
    """One output tensor as it came: KServe v2 datatype, shape and raw little-endian bytes."""

    datatype: str
    shape: Tuple[int, ...]
    data: Any  # bytes or memoryview


def collect_texts(texts: Iterable[str], name: str) -> List[str]:
    """Return ``texts`` as a list, whatever they came in.

    Raises:
        TypeError: Not an ordered collection of texts; a single str above all.
    """
    if isinstance(texts, (str, bytes, bytearray)):
        raise TypeError(
            f"{name} is a single {type(texts).__name__}, a list of str is wanted; write [text]"
        )
    if isinstance(texts, (Mapping, Set)):
        raise TypeError(f"{name} is a {type(texts).__name__}, which has no order; give a list")
    try:
        return list(texts)
    except TypeError as error:
        raise TypeError(
            f"{name} is a {type(texts).__name__}, a list of str is wanted ({error})"
        ) from None


def encode_texts(texts: Sequence[str], name: str) -> List[bytes]:
    """Return each text as UTF-8.

    Raises:
        InvalidInputError: An element is not a str, or holds a lone surrogate.
    """
    encoded = []
    for index, text in enumerate(texts):
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


def check_lengths(texts: Sequence[str], limit: Optional[int], name: str) -> None:
    """Refuse a text that the server would refuse, before it crosses the network.

    Raises:
        InvalidInputError: A text has more than ``limit`` characters.
    """
    if limit is None:
        return
    for index, text in enumerate(texts):
        if len(text) > limit:
            raise InvalidInputError(
                f"{name}[{index}] has {len(text)} characters, the server takes at most {limit}",
                index=index,
            )


def plan_requests(
    texts: Sequence[bytes],
    text_pairs: Optional[Sequence[bytes]],
    *,
    truncate: str,
    max_batch_size: int,
) -> List[Request]:
    """Split texts into requests of nearly equal size, texts of similar length together.

    The longest come first: when they are sent several at a time, a long one started last would
    be waited for alone.
    """
    count = len(texts)
    if count == 0:
        return []
    lengths = [len(text) for text in texts]
    if text_pairs is not None:
        lengths = [length + len(text_pairs[row]) for row, length in enumerate(lengths)]
    order = sorted(range(count), key=lengths.__getitem__, reverse=True)
    num_requests = math.ceil(count / max_batch_size)
    requests = []
    for number in range(num_requests):
        rows = order[number * count // num_requests : (number + 1) * count // num_requests]
        requests.append(
            Request(
                indices=rows,
                texts=[texts[row] for row in rows],
                text_pairs=None if text_pairs is None else [text_pairs[row] for row in rows],
                truncate=truncate,
            )
        )
    return requests


def bytes_tensor(elements: Sequence[bytes]) -> bytes:
    """Return the binary form of a BYTES tensor: each element behind its length, uint32."""
    parts = []
    for element in elements:
        parts.append(struct.pack("<I", len(element)))
        parts.append(element)
    return b"".join(parts)


def http_infer_body(request: Request, timeout_us: int) -> Tuple[bytes, int]:
    """Return the body of an infer request, and the length of its JSON part in bytes.

    Source: the binary tensor data extension of KServe v2, in Triton server's protocol documents.
    """
    tensors = [(name, bytes_tensor(elements)) for name, elements in request.inputs()]
    header = json.dumps(
        {
            "parameters": {"truncate": request.truncate, "timeout": timeout_us},
            "inputs": [
                {
                    "name": name,
                    "shape": [len(request.texts), 1],
                    "datatype": "BYTES",
                    "parameters": {"binary_data_size": len(data)},
                }
                for name, data in tensors
            ],
            "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in OUTPUTS],
        }
    ).encode("ascii")
    return b"".join([header, *(data for _, data in tensors)]), len(header)


def http_infer_outputs(body: bytes, header_length: Optional[str]) -> Dict[str, Output]:
    """Return the outputs in the body of an answer.

    Raises:
        ProtocolError: Not the binary form that was asked for.
    """
    try:
        json_length = int(header_length) if header_length is not None else len(body)
        if not 0 <= json_length <= len(body):
            raise ValueError(f"{HEADER_LENGTH} is {header_length}, {len(body)} bytes came in all")
        header = json.loads(body[:json_length])
        data = memoryview(body)[json_length:]
        outputs = {}
        offset = 0
        for tensor in header["outputs"]:
            size = int(tensor["parameters"]["binary_data_size"])
            if size < 0 or offset + size > len(data):
                raise ValueError(f"{tensor['name']} claims {size} bytes, {len(data)} came in all")
            outputs[str(tensor["name"])] = Output(
                str(tensor["datatype"]),
                tuple(int(size) for size in tensor["shape"]),
                data[offset : offset + size],
            )
            offset += size
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ProtocolError(
            f"the answer is not a KServe v2 inference answer: {type(error).__name__}: {error}"
        ) from error
    return outputs


def _array(
    outputs: Dict[str, Output], name: str, datatype: str, shape: Tuple[int, ...]
) -> NDArray[Any]:
    """One output as an array, or a ProtocolError that says what differs."""
    output = outputs.get(name)
    if output is None:
        raise ProtocolError(f"the answer has no {name}, only {sorted(outputs)}")
    if output.datatype != datatype or output.shape != shape:
        raise ProtocolError(
            f"{name} is {output.datatype} {list(output.shape)}, {datatype} {list(shape)} is wanted"
        )
    dtype = _DTYPES[datatype]
    if len(output.data) != math.prod(shape) * dtype.itemsize:
        raise ProtocolError(
            f"{name} {list(shape)} has {len(output.data)} bytes, "
            f"{math.prod(shape) * dtype.itemsize} are wanted"
        )
    return np.frombuffer(output.data, dtype=dtype).reshape(shape)


def read_answer(outputs: Dict[str, Output], count: int, embedding_size: int) -> Embeddings:
    """Return the answer to one request of ``count`` texts.

    Raises:
        ProtocolError: A tensor is missing, of another type or shape, or not finite.
    """
    vectors = _array(outputs, EMBEDDING, "FP32", (count, embedding_size))
    finite = np.isfinite(vectors)
    if not finite.all():
        row = int(np.argmin(finite.all(axis=1)))
        raise ProtocolError(f"{EMBEDDING} row {row} of {count} holds values that are not finite")
    return Embeddings(
        vectors,
        _array(outputs, TOKEN_COUNT, "INT32", (count, 1))[:, 0],
        _array(outputs, TRUNCATED, "BOOL", (count, 1))[:, 0],
    )


def join_answers(
    requests: Sequence[Request], answers: Sequence[Embeddings], count: int, embedding_size: int
) -> Embeddings:
    """Put the rows of all answers into the caller's order."""
    joined = Embeddings(
        np.empty((count, embedding_size), np.float32),
        np.empty(count, np.int32),
        np.empty(count, np.bool_),
    )
    for number, request in enumerate(requests):
        joined.vectors[request.indices] = answers[number].vectors
        joined.token_counts[request.indices] = answers[number].token_counts
        joined.truncated[request.indices] = answers[number].truncated
    return joined


def with_caller_index(error: BertronError, request: Request) -> BertronError:
    """Return ``error`` naming the text by its place in the caller's list, not in the request."""
    message = str(error)
    match = _TEXT_INDEX.search(message)
    if match is None or int(match.group(1)) >= len(request.indices):
        return error
    index = request.indices[int(match.group(1))]
    message = f"{message[: match.start(1)]}{index}{message[match.end(1) :]}"
    if isinstance(error, InvalidInputError):
        return InvalidInputError(message, index=index)
    return type(error)(message)


def read_server_info(url: str, model: str, version: str, config: Mapping[str, Any]) -> ServerInfo:
    """Return what the model's configuration says.

    Args:
        url: Where it came from.
        model: The model's name.
        version: The server's version.
        config: Triton server's ModelConfig in its JSON form, original field names.

    Raises:
        ProtocolError: The model is not one that makes sentence embeddings of texts.
    """
    try:
        dims = {
            str(output["name"]): [int(size) for size in output["dims"]]
            for output in config["output"]
        }
        (embedding_size,) = dims[EMBEDDING]
        max_batch_size = int(config.get("max_batch_size", 0))
        limits = {
            key: int(value["string_value"])
            for key, value in config.get("parameters", {}).items()
            if key in ("max_tokens_per_text", "max_characters_per_text")
        }
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ProtocolError(
            f"the configuration of model '{model}' at {url} is not that of a text embedding "
            f"model: {type(error).__name__}: {error}"
        ) from error
    if embedding_size < 1 or max_batch_size < 1:
        raise ProtocolError(
            f"model '{model}' at {url} has max_batch_size {max_batch_size} and {EMBEDDING} size "
            f"{embedding_size}, both must be at least 1"
        )
    return ServerInfo(
        url=url,
        server_version=version,
        model=model,
        embedding_size=embedding_size,
        max_batch_size=max_batch_size,
        max_tokens_per_text=limits.get("max_tokens_per_text"),
        max_characters_per_text=limits.get("max_characters_per_text"),
    )
