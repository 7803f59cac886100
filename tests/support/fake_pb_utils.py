"""The few types of ``triton_python_backend_utils`` that bertron_backend uses, without a server."""

import json
from typing import ClassVar


class TritonError(Exception):
    """Triton server's error, with its code."""

    INTERNAL, INVALID_ARG, UNAVAILABLE = 1, 2, 3

    def __init__(self, message, code=INTERNAL):
        super().__init__(message)
        self.code = code


class Tensor:
    """A named array."""

    def __init__(self, name, array):
        self._name, self._array = name, array

    def name(self):
        return self._name

    def as_numpy(self):
        return self._array


class InferenceRequest:
    """A request with its tensors, its parameters and the outputs that it asks for."""

    def __init__(self, parameters=None, timeout_us=0, requested=(), **arrays):
        self._requested = requested
        self._timeout_us = timeout_us
        self.tensors = {name: Tensor(name, array) for name, array in arrays.items()}
        self._parameters = parameters

    def inputs(self):
        return list(self.tensors.values())

    def requested_output_names(self):
        return list(self._requested)

    def timeout(self):
        return self._timeout_us

    def parameters(self):
        return "" if self._parameters is None else json.dumps(self._parameters)


class InferenceResponse:
    """Tensors, or an error."""

    def __init__(self, output_tensors=(), error=None):
        self.outputs = {tensor.name(): tensor.as_numpy() for tensor in output_tensors}
        self.error = error


class Logger:
    """Keeps what was logged."""

    lines: ClassVar[list[str]] = []

    @classmethod
    def log_info(cls, message):
        cls.lines.append(message)

    log_error = log_info
