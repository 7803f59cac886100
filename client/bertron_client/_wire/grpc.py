"""Operations as gRPC messages, and gRPC answers as their results."""

from __future__ import annotations

import math
from typing import Any, Dict, Mapping, Optional, Tuple, Type

import grpc
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import service_pb2

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

_ERRORS: Dict[Any, Type[BertronError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidInputError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidInputError,
    grpc.StatusCode.NOT_FOUND: ModelNotFoundError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: OverloadedError,
    grpc.StatusCode.UNAVAILABLE: ServerUnavailableError,
    grpc.StatusCode.CANCELLED: ServerUnavailableError,
    grpc.StatusCode.UNAUTHENTICATED: AuthenticationError,
    grpc.StatusCode.PERMISSION_DENIED: AuthenticationError,
    grpc.StatusCode.UNIMPLEMENTED: ProtocolError,
}

METHODS = {
    Infer: "ModelInfer",
    ModelConfig: "ModelConfig",
    ModelReady: "ModelReady",
    ModelMetadata: "ModelMetadata",
    ServerMetadata: "ServerMetadata",
    ModelStatistics: "ModelStatistics",
    RegisterRegion: "SystemSharedMemoryRegister",
    UnregisterRegion: "SystemSharedMemoryUnregister",
}


def encode(operation: Operation, timeout_us: int) -> Tuple[str, Any]:
    """Return the method and the message that ask for ``operation``."""
    method = METHODS[type(operation)]
    if isinstance(operation, Infer):
        return method, _infer_message(operation, timeout_us)
    if isinstance(operation, RegisterRegion):
        return method, service_pb2.SystemSharedMemoryRegisterRequest(
            name=operation.region, key=operation.key, offset=0, byte_size=operation.byte_size
        )
    if isinstance(operation, UnregisterRegion):
        return method, service_pb2.SystemSharedMemoryUnregisterRequest(name=operation.region)
    message = getattr(service_pb2, f"{method}Request")()
    if isinstance(operation, (ModelConfig, ModelReady, ModelMetadata)):
        message.name = operation.model
    return method, message


def decode(operation: Operation, message: Any, where: str) -> Any:
    """Return the result of ``operation``, in the form that HTTP has.

    Raises:
        ProtocolError: What came is no answer to the question.
    """
    if isinstance(operation, Infer):
        return _outputs(operation, message, where)
    if isinstance(operation, ModelReady):
        return bool(message.ready)
    if isinstance(operation, (RegisterRegion, UnregisterRegion)):
        return None
    value = MessageToDict(message, preserving_proto_field_name=True)
    return value.get("config", {}) if isinstance(operation, ModelConfig) else value


def error_of(error: Any, where: str) -> BertronError:
    """Return what a failed call means, deadlines and cancellations aside."""
    code, details = error.code(), error.details() or ""
    kind = _ERRORS.get(code, ServerError)
    # These two are gRPC's own words on this side: an answer too large, or not a protobuf message.
    if "larger than max" in details or "deserializing response" in details:
        kind = ProtocolError
    elif "CERTIFICATE_VERIFY_FAILED" in details or "Hostname Verification" in details:
        kind = AuthenticationError
    name = getattr(code, "name", code)
    return error_from_server(
        kind, details, f"gRPC {name} from {where}", _retry_after_s(error.trailing_metadata())
    )


def _infer_message(operation: Infer, timeout_us: int) -> Any:
    message = service_pb2.ModelInferRequest(model_name=operation.model)
    for key, value in operation.parameters.items():
        if isinstance(value, bool):
            message.parameters[key].bool_param = value
        else:
            message.parameters[key].string_param = value
    message.parameters["timeout"].int64_param = timeout_us
    for tensor in operation.inputs:
        added = message.inputs.add(name=tensor.name, datatype="BYTES", shape=tensor.shape)
        if isinstance(tensor.data, SharedSlice):
            _set_shared(added, tensor.data)
        else:
            message.raw_input_contents.append(tensor.data)
    for name, shared in operation.outputs.items():
        added = message.outputs.add(name=name)
        if shared is not None:
            _set_shared(added, shared)
    return message


def _set_shared(tensor: Any, shared: SharedSlice) -> None:
    tensor.parameters["shared_memory_region"].string_param = shared.region
    tensor.parameters["shared_memory_offset"].int64_param = shared.offset
    tensor.parameters["shared_memory_byte_size"].int64_param = shared.byte_size


def _outputs(operation: Infer, message: Any, where: str) -> Mapping[str, Output]:
    """The outputs; one in shared memory has no data, and an empty content or none."""
    contents = list(message.raw_output_contents)
    is_shared = [operation.outputs.get(tensor.name) is not None for tensor in message.outputs]
    if len(contents) == is_shared.count(False):
        for number, shared in enumerate(is_shared):
            if shared:
                contents.insert(number, b"")
    if len(contents) != len(message.outputs):
        raise ProtocolError(
            f"{len(message.outputs)} outputs came with {len(message.raw_output_contents)} "
            f"contents ({where})"
        )
    return {
        tensor.name: Output(tensor.datatype, tuple(tensor.shape), None if shared else content)
        for tensor, shared, content in zip(message.outputs, is_shared, contents)
    }


def _retry_after_s(metadata: Any) -> Optional[float]:
    """Seconds of a proxy's or gateway's ``retry-after``; Triton server itself sends none."""
    for key, value in metadata or ():
        if key == "retry-after":
            try:
                seconds = float(value)
            except ValueError:
                return None
            return max(0.0, seconds) if math.isfinite(seconds) else None
    return None
