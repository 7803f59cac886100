"""KServe v2 over gRPC, on the stubs that tritonclient brings.

gRPC keeps the deadline of a call by itself, connecting included, whatever the peer does.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Mapping, Type

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from .._call import Call, CallCancelledError
from .._codec import MAX_ANSWER_BYTES, OUTPUTS, Output, Request, bytes_tensor
from .._exceptions import (
    BertronError,
    InvalidInputError,
    ModelNotFoundError,
    OverloadedError,
    ProtocolError,
    ServerError,
    ServerUnavailableError,
    error_from_server,
)
from .base import Url

_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
    ("grpc.max_send_message_length", -1),  # the limits on texts are the server's
    # A server that comes back is found within half a second, not after gRPC's 120.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),  # no connection shared with another client's backoff
    ("grpc.enable_http_proxy", 0),  # the url says where to go, as it does over HTTP
]

_ERRORS: Dict[Any, Type[BertronError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidInputError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidInputError,
    grpc.StatusCode.NOT_FOUND: ModelNotFoundError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: OverloadedError,
    grpc.StatusCode.UNAVAILABLE: ServerUnavailableError,
    grpc.StatusCode.CANCELLED: ServerUnavailableError,
    grpc.StatusCode.UNIMPLEMENTED: ProtocolError,
}


class GrpcTransport:
    """One channel, which multiplexes all calls."""

    def __init__(self, url: Url) -> None:
        self._channel = grpc.insecure_channel(url.netloc, options=_CHANNEL_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def infer(self, model: str, request: Request, call: Call) -> Dict[str, Output]:
        """Return the output tensors, unchecked."""
        message = _infer_message(model, request, int(call.remaining_s() * 1e6))
        response = self._rpc(self._stub.ModelInfer, message, call)
        if len(response.raw_output_contents) != len(response.outputs):
            raise ProtocolError(
                f"{len(response.outputs)} outputs came with {len(response.raw_output_contents)} "
                f"contents ({call.where})"
            )
        return {
            tensor.name: Output(
                tensor.datatype, tuple(tensor.shape), response.raw_output_contents[number]
            )
            for number, tensor in enumerate(response.outputs)
        }

    def is_model_ready(self, model: str, call: Call) -> bool:
        """Whether the server says that the model answers requests."""
        message = service_pb2.ModelReadyRequest(name=model)
        return bool(self._rpc(self._stub.ModelReady, message, call).ready)

    def model_config(self, model: str, call: Call) -> Mapping[str, Any]:
        """Return Triton server's ModelConfig in its JSON form."""
        config = self._rpc(
            self._stub.ModelConfig, service_pb2.ModelConfigRequest(name=model), call
        ).config
        return {
            "max_batch_size": config.max_batch_size,
            "output": [{"name": out.name, "dims": list(out.dims)} for out in config.output],
            "parameters": {
                key: {"string_value": value.string_value}
                for key, value in config.parameters.items()
            },
        }

    def server_version(self, call: Call) -> str:
        """Return the version that the server names."""
        message = service_pb2.ServerMetadataRequest()
        return str(self._rpc(self._stub.ServerMetadata, message, call).version)

    def close(self) -> None:
        """Drop the channel; a call in flight on it ends at once."""
        self._channel.close()

    def _rpc(self, method: Callable[..., Any], message: Any, call: Call) -> Any:
        """Do one call, and turn every fault into ours."""
        try:
            if not call.has_siblings:
                return method(message, timeout=call.remaining_s())
            future = method.future(message, timeout=call.remaining_s())  # type: ignore[attr-defined]
            with call.abortable(future.cancel):
                return future.result()
        except grpc.FutureCancelledError as error:
            raise CallCancelledError(f"cancelled ({call.where})") from error
        except grpc.RpcError as error:
            raise _error_from(error, call) from error
        except ValueError as error:  # gRPC's word for a closed channel
            raise RuntimeError("the client is closed") from error


def _infer_message(model: str, request: Request, timeout_us: int) -> Any:
    message = service_pb2.ModelInferRequest(model_name=model)
    message.parameters["truncate"].string_param = request.truncate
    message.parameters["timeout"].int64_param = timeout_us
    for name, elements in request.inputs():
        message.inputs.add(name=name, datatype="BYTES", shape=[len(elements), 1])
        message.raw_input_contents.append(bytes_tensor(elements))
    for name in OUTPUTS:
        message.outputs.add(name=name)
    return message


def _error_from(error: Any, call: Call) -> BertronError:
    """Return what a failed call means to the caller."""
    code, details = error.code(), error.details() or ""
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return call.exceeded()
    if code == grpc.StatusCode.CANCELLED and call.is_cancelled:
        return CallCancelledError(f"cancelled ({call.where})")
    kind = _ERRORS.get(code, ServerError)
    # These two are gRPC's own words on this side: an answer too large, or not a protobuf message.
    if "larger than max" in details or "deserializing response" in details:
        kind = ProtocolError
    return error_from_server(kind, details, f"gRPC {code.name} from {call.where}")
