"""What can be asked of a server, whichever protocol carries it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple, Union


@dataclass(frozen=True)
class SharedSlice:
    """Part of a shared-memory region that the server has registered."""

    region: str
    offset: int
    byte_size: int


@dataclass(frozen=True)
class InputTensor:
    """A BYTES tensor: its elements in binary form, or where in shared memory they lie."""

    name: str
    shape: Tuple[int, ...]
    data: Union[bytes, SharedSlice]


@dataclass(frozen=True)
class Output:
    """One output tensor as it came: KServe v2 datatype, shape and raw little-endian bytes."""

    datatype: str
    shape: Tuple[int, ...]
    data: Any  # bytes or memoryview


@dataclass(frozen=True)
class Infer:
    """One inference; answered by ``{name: Output}``."""

    model: str
    inputs: Sequence[InputTensor]
    outputs: Mapping[str, Optional[SharedSlice]]  # where each is to be put; None: in the answer
    parameters: Dict[str, Union[str, bool]] = field(default_factory=dict)
    output_bytes: Dict[str, int] = field(default_factory=dict)  # size of those that are known


@dataclass(frozen=True)
class ModelConfig:
    """Answered by Triton server's ModelConfig in its JSON form."""

    model: str


@dataclass(frozen=True)
class ModelReady:
    """Answered by whether the server says that the model answers requests."""

    model: str


@dataclass(frozen=True)
class ModelMetadata:
    """Answered by ``{"name": ..., "versions": [...]}``."""

    model: str


@dataclass(frozen=True)
class ServerMetadata:
    """Answered by ``{"name": ..., "version": ...}``."""


@dataclass(frozen=True)
class ModelStatistics:
    """Answered by Triton server's statistics of all models in their JSON form."""


@dataclass(frozen=True)
class RegisterRegion:
    """Make a POSIX shared-memory object known to the server; answered by None."""

    region: str
    key: str
    byte_size: int


@dataclass(frozen=True)
class UnregisterRegion:
    """Make the server forget it; answered by None."""

    region: str


Operation = Union[
    Infer,
    ModelConfig,
    ModelReady,
    ModelMetadata,
    ServerMetadata,
    ModelStatistics,
    RegisterRegion,
    UnregisterRegion,
]
