"""The parameters of each ``config.pbtxt``, read once into frozen dataclasses."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from bertron_torchscript.repository import GPU_DTYPES

from bertron_backend.cores import usable_cores


@dataclasses.dataclass(frozen=True)
class TokenizerSettings:
    """Of the tokenizer model.

    Attributes:
        max_tokens_per_text: Longest text, special tokens included.
        max_characters_per_text: A longer text is refused before it is tokenised.
        max_characters_per_request: So is a request whose texts and pairs have more together.
        max_wait_us: How long a request may wait for the encoder; its own timeout can lower it.
    """

    max_tokens_per_text: int
    max_characters_per_text: int
    max_characters_per_request: int
    max_wait_us: int

    @classmethod
    def from_model_config(cls, config: Mapping[str, Any]) -> TokenizerSettings:
        """Read Triton server's model configuration, parsed from JSON."""
        return cls(
            max_tokens_per_text=_positive(config, "max_tokens_per_text"),
            max_characters_per_text=_positive(config, "max_characters_per_text"),
            max_characters_per_request=_positive(config, "max_characters_per_request"),
            max_wait_us=_positive(config, "max_wait_us"),
        )


@dataclasses.dataclass(frozen=True)
class EncoderSettings:
    """Of the encoder model.

    Attributes:
        warmup_shapes: (texts, tokens a text) of the forwards that run before the model is ready.
        max_tokens_per_forward: A larger batch is split between texts; 0 leaves it to the device.
        intra_op_threads: CPU threads of one forward.
        cpu_instances: Copies of the model on CPUs, at least 1.
    """

    warmup_shapes: tuple[tuple[int, int], ...]
    max_tokens_per_forward: int
    intra_op_threads: int
    cpu_instances: int = 1

    @classmethod
    def from_model_config(cls, config: Mapping[str, Any]) -> EncoderSettings:
        """Read Triton server's model configuration, parsed from JSON."""
        groups = config.get("instance_group", [])
        on_cpu = sum(group["count"] for group in groups if group.get("kind") == "KIND_CPU")
        instances = max(1, on_cpu)
        share = max(1, usable_cores() // instances)
        return cls(
            warmup_shapes=_shapes(config, "warmup_shapes"),
            max_tokens_per_forward=_integer(config, "max_tokens_per_forward"),
            intra_op_threads=_integer(config, "intra_op_threads") or share,
            cpu_instances=instances,
        )


@dataclasses.dataclass(frozen=True)
class GpuSettings:
    """Of the encoder model on a GPU; a configuration need not have them.

    Attributes:
        gpu_dtype: In which matrix products are computed there: one of GPU_DTYPES, or None for the
            dtype of the exported file.
        cuda_graphs: Whether forwards are replayed from CUDA graphs.
        cuda_graph_megabytes: Of device memory that all graphs together may hold, in units of 2^20
            bytes. A bound against surprises, not a measured need.
    """

    gpu_dtype: str | None = None
    cuda_graphs: bool = True
    cuda_graph_megabytes: int = 1024

    @classmethod
    def from_model_config(cls, config: Mapping[str, Any]) -> GpuSettings:
        """Read Triton server's model configuration, parsed from JSON."""
        given = config.get("parameters", {})
        settings = cls()
        if "gpu_dtype" in given:
            dtype = _one_of(config, "gpu_dtype", GPU_DTYPES)
            settings = dataclasses.replace(settings, gpu_dtype=dtype)
        if "cuda_graphs" in given:
            is_on = _flag(config, "cuda_graphs")
            settings = dataclasses.replace(settings, cuda_graphs=is_on)
        if "cuda_graph_megabytes" in given:
            megabytes = _positive(config, "cuda_graph_megabytes")
            settings = dataclasses.replace(settings, cuda_graph_megabytes=megabytes)
        return settings


def _value(config: Mapping[str, Any], key: str) -> str:
    try:
        return str(config["parameters"][key]["string_value"]).strip()
    except KeyError:
        raise ValueError(f"{config.get('name')}: config.pbtxt has no parameter {key!r}") from None


def _integer(config: Mapping[str, Any], key: str) -> int:
    value = _value(config, key)
    if not re.fullmatch(r"\d+", value):
        raise ValueError(
            f"{config.get('name')}: parameter {key!r} is {value!r}, not a whole number of 0 or more"
        )
    return int(value)


def _positive(config: Mapping[str, Any], key: str) -> int:
    value = _integer(config, key)
    if value == 0:
        raise ValueError(f"{config.get('name')}: parameter {key!r} is 0, not 1 or more")
    return value


def _one_of(config: Mapping[str, Any], key: str, choices: tuple[str, ...]) -> str:
    value = _value(config, key)
    if value not in choices:
        raise ValueError(
            f"{config.get('name')}: parameter {key!r} is {value!r}, not one of {', '.join(choices)}"
        )
    return value


def _flag(config: Mapping[str, Any], key: str) -> bool:
    value = _value(config, key)
    if value not in ("true", "false"):
        raise ValueError(f"{config.get('name')}: parameter {key!r} is {value!r}, not true or false")
    return value == "true"


def _shapes(config: Mapping[str, Any], key: str) -> tuple[tuple[int, int], ...]:
    value = _value(config, key)
    if not re.fullmatch(r"([1-9]\d*x[1-9]\d*)(,[1-9]\d*x[1-9]\d*)*", value):
        raise ValueError(
            f"{config.get('name')}: parameter {key!r} is {value!r}, not a list such as 1x8,32x64"
        )
    pairs = (shape.split("x") for shape in value.split(","))
    return tuple((int(texts), int(tokens)) for texts, tokens in pairs)
