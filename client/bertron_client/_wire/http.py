"""Operations as HTTP requests, and HTTP answers as their results.

Source: KServe v2 and its extensions in Triton server's protocol documents, above all the binary
tensor data extension.
"""

from __future__ import annotations

import email.utils
import gzip
import json
import math
import time
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Type
from urllib.parse import quote

from .._exceptions import (
    AuthenticationError,
    BertronError,
    InvalidInputError,
    ModelNotFoundError,
    OverloadedError,
    ProtocolError,
    ServerError,
    ServerUnavailableError,
    error_from_server,
)
from .operations import (
    Infer,
    ModelConfig,
    ModelMetadata,
    ModelReady,
    ModelStatistics,
    Operation,
    Output,
    RegisterRegion,
    ServerMetadata,
    SharedSlice,
    UnregisterRegion,
)

HEADER_LENGTH = "inference-header-content-length"
# Below this a compressed request is hardly smaller, and costs both sides more than it saves.
_LEAST_BYTES_TO_COMPRESS = 1024
# The demo's texts shrink to 0.51 at 56 MB/s; level 6 makes 0.46 of them at 25 (Zen 3, 2026-11-25).
_GZIP_LEVEL = 1

# We map to the most specific error the status allows; what is not listed is a ServerError from
# 500 on and a ProtocolError below.
_ERRORS: Dict[int, Type[BertronError]] = {
    400: InvalidInputError,
    401: AuthenticationError,
    403: AuthenticationError,
    404: ModelNotFoundError,
    407: AuthenticationError,
    413: InvalidInputError,
    422: InvalidInputError,
    429: OverloadedError,
    502: ServerUnavailableError,
    503: ServerUnavailableError,
    504: ServerUnavailableError,
}


@dataclass(frozen=True)
class HttpRequest:
    """A request, apart from the headers that every request of a client has."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True)
class HttpAnswer:
    """An answer, its body complete and no longer compressed; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def encode(operation: Operation, timeout_us: int, compression: Optional[str]) -> HttpRequest:
    """Return the request that asks for ``operation``.

    Args:
        operation: What is asked.
        timeout_us: How long the server may let it wait.
        compression: "gzip", or None.
    """
    if isinstance(operation, Infer):
        return _infer_request(operation, timeout_us, compression)
    if isinstance(operation, (RegisterRegion, UnregisterRegion)):
        return _region_request(operation)
    if isinstance(operation, ServerMetadata):
        path = "/v2"
    elif isinstance(operation, ModelStatistics):
        path = "/v2/models/stats"
    else:
        path = f"/v2/models/{quote(operation.model, safe='')}"
        path += {ModelConfig: "/config", ModelReady: "/ready", ModelMetadata: ""}[type(operation)]
    return HttpRequest("GET", path, {})


def decode(operation: Operation, answer: HttpAnswer, where: str) -> Any:
    """Return the result of ``operation``.

    Args:
        operation: What was asked.
        answer: What came.
        where: Url and model, for the reader of an error.

    Raises:
        BertronError: The server refused, or what came is no answer to the question.
    """
    if answer.status != 200:
        fallback = ServerError if answer.status >= 500 else ProtocolError
        raise error_from_server(
            _ERRORS.get(answer.status, fallback),
            _error_text(answer.body),
            f"HTTP {answer.status} from {where}",
            _retry_after_s(answer.headers.get("retry-after")),
        )
    if isinstance(operation, Infer):
        return _outputs(operation, answer)
    if isinstance(operation, ModelReady):
        return True
    if isinstance(operation, (RegisterRegion, UnregisterRegion)):
        return None
    try:
        value = json.loads(answer.body)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(
            f"{type(operation).__name__} was not answered in JSON: {error} ({where})"
        ) from error
    if not isinstance(value, dict):
        raise ProtocolError(
            f"{type(operation).__name__} was answered by {type(value).__name__}, an object is "
            f"wanted ({where})"
        )
    return value


def _shared_parameters(shared: SharedSlice) -> Dict[str, Any]:
    return {
        "shared_memory_region": shared.region,
        "shared_memory_offset": shared.offset,
        "shared_memory_byte_size": shared.byte_size,
    }


def _infer_request(operation: Infer, timeout_us: int, compression: Optional[str]) -> HttpRequest:
    bodies: List[bytes] = []
    inputs = []
    for tensor in operation.inputs:
        if isinstance(tensor.data, SharedSlice):
            parameters = _shared_parameters(tensor.data)
        else:
            parameters = {"binary_data_size": len(tensor.data)}
            bodies.append(tensor.data)
        inputs.append(
            {
                "name": tensor.name,
                "shape": tensor.shape,
                "datatype": "BYTES",
                "parameters": parameters,
            }
        )
    outputs = [
        {
            "name": name,
            "parameters": {"binary_data": True} if shared is None else _shared_parameters(shared),
        }
        for name, shared in operation.outputs.items()
    ]
    header = json.dumps(
        {
            "parameters": {**operation.parameters, "timeout": timeout_us},
            "inputs": inputs,
            "outputs": outputs,
        }
    ).encode("ascii")
    headers = {"content-type": "application/octet-stream", HEADER_LENGTH: str(len(header))}
    body = b"".join([header, *bodies])
    if compression is not None:
        headers["accept-encoding"] = compression
        if len(body) >= _LEAST_BYTES_TO_COMPRESS:
            headers["content-encoding"] = compression
            body = gzip.compress(body, _GZIP_LEVEL)
    path = f"/v2/models/{quote(operation.model, safe='')}/infer"
    return HttpRequest("POST", path, headers, body)


def _region_request(operation: Any) -> HttpRequest:
    path = f"/v2/systemsharedmemory/region/{quote(operation.region, safe='')}"
    if isinstance(operation, UnregisterRegion):
        return HttpRequest("POST", f"{path}/unregister", {})
    body = {"key": operation.key, "offset": 0, "byte_size": operation.byte_size}
    return HttpRequest("POST", f"{path}/register", {}, json.dumps(body).encode("ascii"))


def _outputs(operation: Infer, answer: HttpAnswer) -> Dict[str, Output]:
    """The outputs in the body; those in shared memory have no data."""
    shared = {name for name, place in operation.outputs.items() if place is not None}
    body = answer.body
    header_length = answer.headers.get(HEADER_LENGTH)
    try:
        json_length = int(header_length) if header_length is not None else len(body)
        if not 0 <= json_length <= len(body):
            raise ValueError(f"{HEADER_LENGTH} is {header_length}, {len(body)} bytes came in all")
        header = json.loads(body[:json_length])
        data = memoryview(body)[json_length:]
        outputs = {}
        offset = 0
        for tensor in header["outputs"]:
            is_here = tensor["name"] not in shared
            size = int(tensor["parameters"]["binary_data_size"]) if is_here else 0
            if size < 0 or offset + size > len(data):
                raise ValueError(f"{tensor['name']} claims {size} bytes, {len(data)} came in all")
            outputs[str(tensor["name"])] = Output(
                str(tensor["datatype"]),
                tuple(int(size) for size in tensor["shape"]),
                data[offset : offset + size] if is_here else None,
            )
            offset += size
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ProtocolError(
            f"the answer is not a KServe v2 inference answer: {type(error).__name__}: {error}"
        ) from error
    return outputs


def _error_text(body: bytes) -> str:
    """The reason in an error answer, JSON as Triton server sends it or anything else."""
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return body[:300].decode("utf-8", "replace")


def _retry_after_s(value: Optional[str]) -> Optional[float]:
    """Seconds of a Retry-After header, in either of its forms; None where there is none to read.

    Source: RFC 9110, section 10.2.3.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
