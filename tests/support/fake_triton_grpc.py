"""The fake server over gRPC."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import fake_triton_memory as shared_memory
import grpc
from fake_triton_model import (
    Behaviour,
    RefusalError,
    Request,
    answer,
    model_config,
    model_metadata,
    model_statistics,
    server_metadata,
    strings_of,
)
from google.protobuf.json_format import ParseDict
from tritonclient.grpc import service_pb2, service_pb2_grpc

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    502: grpc.StatusCode.UNAVAILABLE,
    503: grpc.StatusCode.UNAVAILABLE,
}
HUGE_BYTES = 80 * 1024 * 1024


def _parameters(tensor) -> dict[str, object]:
    return {
        key: getattr(value, value.WhichOneof("parameter_choice"))
        for key, value in tensor.parameters.items()
    }


class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Each method asks fake_triton_model for what HTTP would answer as JSON."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour

    @contextlib.contextmanager
    def _admitted(self, what: str, model: str | None, context) -> Iterator[dict[str, str]]:
        """Metadata of a request that is let in; refusals become statuses."""
        headers = {key: value for key, value in context.invocation_metadata()}  # noqa: C416
        try:
            self.behaviour.admit(what, model, headers)
            yield headers
        except RefusalError as refusal:
            retry_after = self.behaviour.retry_after_s
            if retry_after is not None and refusal.status in (429, 503):
                context.set_trailing_metadata((("retry-after", str(retry_after)),))
            code, message = _CODES[refusal.status], refusal.message
            if what in self.behaviour.restricted and refusal.status == 403:
                # Triton server's own choice of code, and of words
                code = grpc.StatusCode.UNAVAILABLE
                message = (
                    "This protocol is restricted, expecting header 'triton-grpc-protocol-admin-key'"
                )
            context.abort(code, message)

    def ServerLive(self, _request, _context):  # noqa: N802
        return service_pb2.ServerLiveResponse(live=True)

    def ServerReady(self, _request, _context):  # noqa: N802
        return service_pb2.ServerReadyResponse(ready=True)

    def ServerMetadata(self, _request, context):  # noqa: N802
        with self._admitted("metadata", None, context):
            return ParseDict(server_metadata(), service_pb2.ServerMetadataResponse())

    def ModelReady(self, request, context):  # noqa: N802
        with self._admitted("ready", request.name, context):
            return service_pb2.ModelReadyResponse(ready=self.behaviour.is_ready)

    def ModelMetadata(self, request, context):  # noqa: N802
        with self._admitted("model-metadata", request.name, context):
            metadata = model_metadata(request.name, self.behaviour)
            return ParseDict(metadata, service_pb2.ModelMetadataResponse())

    def ModelConfig(self, request, context):  # noqa: N802
        with self._admitted("config", request.name, context):
            config = {"config": model_config(request.name, self.behaviour)}
            return ParseDict(config, service_pb2.ModelConfigResponse())

    def ModelStatistics(self, request, context):  # noqa: N802
        with self._admitted("statistics", request.name or None, context):
            statistics = model_statistics(request.name or None, self.behaviour)
            return ParseDict(statistics, service_pb2.ModelStatisticsResponse())

    def SystemSharedMemoryStatus(self, request, context):  # noqa: N802
        with self._admitted("shared-memory", None, context):
            regions = shared_memory.status(self.behaviour, request.name)
            return ParseDict(
                {"regions": {region["name"]: region for region in regions}},
                service_pb2.SystemSharedMemoryStatusResponse(),
            )

    def SystemSharedMemoryRegister(self, request, context):  # noqa: N802
        with self._admitted("shared-memory", None, context):
            shared_memory.register(
                self.behaviour, request.name, request.key, request.offset, request.byte_size
            )
            return service_pb2.SystemSharedMemoryRegisterResponse()

    def SystemSharedMemoryUnregister(self, request, context):  # noqa: N802
        with self._admitted("shared-memory", None, context):
            shared_memory.unregister(self.behaviour, request.name)
            return service_pb2.SystemSharedMemoryUnregisterResponse()

    def ModelInfer(self, request, context):  # noqa: N802
        with self._admitted("infer", request.model_name, context) as headers:
            came, wanted = self._read(request, headers)
            with self.behaviour.taking(came):
                outputs = answer(came, self.behaviour)
            response = service_pb2.ModelInferResponse(
                model_name=request.model_name, model_version="1", id=request.id
            )
            for output in outputs:
                described = response.outputs.add(
                    name=output.name, datatype=output.datatype, shape=output.shape
                )
                parameters, data = wanted.get(output.name, {}), output.data
                if "shared_memory_region" in parameters:
                    written = shared_memory.write(self.behaviour, parameters, output.name, data)
                    for key, value in written.items():
                        choice = "string_param" if isinstance(value, str) else "int64_param"
                        setattr(described.parameters[key], choice, value)
                    data = b""  # each output has contents, empty where they are in shared memory
                response.raw_output_contents.append(data)
            if came.fault == "huge":
                response.outputs.add(name="HUGE", datatype="UINT8", shape=[HUGE_BYTES])
                response.raw_output_contents.append(bytes(HUGE_BYTES))
            return response

    def _read(self, request, headers: dict[str, str]) -> tuple[Request, dict[str, dict]]:
        """The request, and each requested output's parameters."""
        raw = iter(request.raw_input_contents)
        tensors = {}
        for tensor in request.inputs:
            parameters = _parameters(tensor)
            if "shared_memory_region" in parameters:
                data = shared_memory.read(self.behaviour, parameters)
            else:
                data = next(raw)
            tensors[tensor.name] = strings_of(data)
            if list(tensor.shape) != [len(tensors[tensor.name]), 1]:
                raise RefusalError(400, f"shape {list(tensor.shape)} is not that of the data")
        wanted = {output.name: _parameters(output) for output in request.outputs}
        came = Request(
            tensors["TEXT"],
            tensors.get("TEXT_PAIR"),
            _parameters(request),
            request.model_name,
            list(wanted),
            headers,
        )
        return came, wanted
