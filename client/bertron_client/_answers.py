"""What the server's answers mean: arrays to rows and tokens, configurations to limits. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from ._exceptions import BertronError, InvalidInputError, ProtocolError, ServerError
from ._models import Embeddings, ModelStatistics, ServerInfo, TokenizedText
from ._wire.operations import Output
from ._wire.tensors import array_of, strings_of

TEXT = "TEXT"
TEXT_PAIR = "TEXT_PAIR"
EMBEDDING = "EMBEDDING"
TOKEN_COUNT = "TOKEN_COUNT"  # noqa: S105 - a tensor's name
TRUNCATED = "TRUNCATED"
EMBEDDING_OUTPUTS = (EMBEDDING, TOKEN_COUNT, TRUNCATED)
TOKEN_OUTPUTS = ("TOKENS", "OFFSETS", "input_ids", "token_type_ids", "attention_mask", TRUNCATED)

# How the server's messages name a text: its place in the request.
_TEXT_INDEX = re.compile(r"\btext(?:[ _]pair)? (\d+)\b", re.IGNORECASE)
_KIND = re.compile(r"KIND_(CPU|GPU)$")


@dataclass(frozen=True)
class Limits:
    """What a model's configuration says that every call needs.

    Attributes:
        embedding_size: E.
        max_batch_size: Texts a request.
        max_tokens_per_text: Or None.
        max_characters_per_text: Or None.
        max_characters_per_request: Of all its texts together, or None.
        steps: The models that it consists of.
        facts: The rest of what its parameters say.
    """

    embedding_size: int
    max_batch_size: int
    max_tokens_per_text: Optional[int]
    max_characters_per_text: Optional[int]
    max_characters_per_request: Optional[int]
    steps: Tuple[str, ...]
    facts: Mapping[str, str]

    @property
    def tokenizer(self) -> Optional[str]:
        """The step that turns text into tokens."""
        return self.steps[0] if self.steps else None


def embedding_output_bytes(count: int, embedding_size: int) -> Dict[str, int]:
    """Return how many bytes each output of ``embed`` has for ``count`` texts."""
    return {EMBEDDING: 4 * count * embedding_size, TOKEN_COUNT: 4 * count, TRUNCATED: count}


def read_embeddings(outputs: Mapping[str, Output], count: int, embedding_size: int) -> Embeddings:
    """Return the answer to one request of ``count`` texts.

    Raises:
        ProtocolError: A tensor is missing, of another type or shape, or not finite.
    """
    vectors = array_of(outputs, EMBEDDING, "FP32", (count, embedding_size))
    finite = np.isfinite(vectors)
    if not finite.all():
        row = int(np.argmin(finite.all(axis=1)))
        raise ProtocolError(f"{EMBEDDING} row {row} of {count} holds values that are not finite")
    return Embeddings(
        vectors,
        array_of(outputs, TOKEN_COUNT, "INT32", (count, 1))[:, 0],
        array_of(outputs, TRUNCATED, "BOOL", (count, 1))[:, 0],
    )


def read_tokens(outputs: Mapping[str, Output], count: int) -> List[TokenizedText]:
    """Return the tokenizer's answer to one request of ``count`` texts, padding dropped.

    Raises:
        ProtocolError: A tensor is missing, of another type or shape, or has holes.
    """
    mask = array_of(outputs, "attention_mask", "INT32", (count, -1)).astype(bool)
    longest = mask.shape[1]
    lengths = mask.sum(axis=1)
    if not (mask == (np.arange(longest) < lengths[:, np.newaxis])).all():
        raise ProtocolError("attention_mask has a token behind padding")
    ids = array_of(outputs, "input_ids", "INT32", (count, longest))
    type_ids = array_of(outputs, "token_type_ids", "INT32", (count, longest))
    offsets = array_of(outputs, "OFFSETS", "INT32", (count, longest, 2))
    tokens = strings_of(outputs, "TOKENS", (count, longest))
    truncated = array_of(outputs, TRUNCATED, "BOOL", (count, 1))
    return [
        TokenizedText(
            tokens[row * longest : row * longest + int(length)],
            ids[row, :length].copy(),
            type_ids[row, :length].copy(),
            offsets[row, :length].copy(),
            bool(truncated[row, 0]),
        )
        for row, length in enumerate(lengths)
    ]


def with_caller_index(error: BertronError, indices: Sequence[int]) -> BertronError:
    """Return ``error`` naming the text by its place in the caller's list, not in the request.

    Args:
        error: What the server said.
        indices: Place of each of the request's texts in the caller's list.
    """
    if not isinstance(error, (InvalidInputError, ServerError)):
        return error
    message = str(error)
    match = _TEXT_INDEX.search(message)
    if match is None or int(match.group(1)) >= len(indices):
        return error
    index = indices[int(match.group(1))]
    message = f"{message[: match.start(1)]}{index}{message[match.end(1) :]}"
    if isinstance(error, InvalidInputError):
        return InvalidInputError(message, index=index)
    return type(error)(message)


def read_limits(config: Mapping[str, Any], where: str) -> Limits:
    """Return what the model's configuration says.

    Args:
        config: Triton server's ModelConfig in its JSON form, original field names.
        where: Url and model, for the reader of an error.

    Raises:
        ProtocolError: The model is not one that makes sentence embeddings of texts.
    """
    try:
        dims = {
            str(output["name"]): [int(size) for size in output["dims"]]
            for output in config["output"]
        }
        (embedding_size,) = dims[EMBEDDING]
        facts = {
            str(key): str(value["string_value"])
            for key, value in config.get("parameters", {}).items()
        }
        steps = config.get("ensemble_scheduling", {}).get("step", ())
        limits = Limits(
            embedding_size=embedding_size,
            max_batch_size=int(config.get("max_batch_size", 0)),
            max_tokens_per_text=_optional_int(facts.get("max_tokens_per_text")),
            max_characters_per_text=_optional_int(facts.get("max_characters_per_text")),
            max_characters_per_request=_optional_int(facts.get("max_characters_per_request")),
            steps=tuple(str(step["model_name"]) for step in steps),
            facts=facts,
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ProtocolError(
            "the configuration is not that of a text embedding model: "
            f"{type(error).__name__}: {error} ({where})"
        ) from error
    if limits.embedding_size < 1 or limits.max_batch_size < 1:
        raise ProtocolError(
            f"max_batch_size is {limits.max_batch_size} and the size of {EMBEDDING} "
            f"{limits.embedding_size}, both must be at least 1 ({where})"
        )
    return limits


def _optional_int(value: Optional[str]) -> Optional[int]:
    return None if value is None else int(value)


def make_server_info(
    url: str,
    model: str,
    limits: Limits,
    server: Mapping[str, Any],
    metadata: Mapping[str, Any],
    encoder_config: Mapping[str, Any],
) -> ServerInfo:
    """Put together what the server says.

    Args:
        url: Where it was asked.
        model: The ensemble.
        limits: From its configuration.
        server: ServerMetadata.
        metadata: The ensemble's ModelMetadata.
        encoder_config: The configuration of its last step; empty where it has none.
    """
    normalize = limits.facts.get("normalize")
    return ServerInfo(
        url=url,
        server_version=str(server.get("version", "unknown")),
        model=model,
        model_versions=tuple(str(version) for version in metadata.get("versions", ())),
        models=limits.steps,
        tokenizer=limits.tokenizer,
        embedding_size=limits.embedding_size,
        max_batch_size=limits.max_batch_size,
        max_tokens_per_text=limits.max_tokens_per_text,
        max_characters_per_text=limits.max_characters_per_text,
        max_characters_per_request=limits.max_characters_per_request,
        dtype=limits.facts.get("dtype"),
        device=_device(encoder_config),
        pooling=limits.facts.get("pooling"),
        normalized=None if normalize is None else normalize.lower() == "true",
    )


def _device(config: Mapping[str, Any]) -> Optional[str]:
    """Where the encoder's instances run, as Triton server has completed its configuration."""
    groups = config.get("instance_group", ())
    kinds = {match.group(1) for g in groups if (match := _KIND.search(str(g.get("kind", ""))))}
    return "+".join(sorted(kinds)).lower() or None


def read_statistics(value: Mapping[str, Any], where: str) -> Dict[str, ModelStatistics]:
    """Return Triton server's statistics by model, all versions of one together.

    Raises:
        ProtocolError: They are not in the form that Triton server gives them.
    """
    try:
        models: Dict[str, List[Mapping[str, Any]]] = {}
        for entry in value.get("model_stats", ()):
            models.setdefault(str(entry["name"]), []).append(entry)
        return {name: _model_statistics(entries) for name, entries in models.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ProtocolError(
            f"the statistics are not Triton server's: {type(error).__name__}: {error} ({where})"
        ) from error


def _model_statistics(entries: Sequence[Mapping[str, Any]]) -> ModelStatistics:
    def total(kind: str, unit: str) -> int:
        return sum(
            int(entry.get("inference_stats", {}).get(kind, {}).get(unit, 0)) for entry in entries
        )

    def mean_ms(*kinds: str) -> float:
        """Nanoseconds of all kinds over the requests of the first."""
        count = total(kinds[0], "count")
        return sum(total(kind, "ns") for kind in kinds) / count / 1e6 if count else 0.0

    sizes: Dict[int, int] = {}
    for entry in entries:
        for batch in entry.get("batch_stats", ()):
            size = int(batch["batch_size"])
            executions = int(batch.get("compute_infer", {}).get("count", 0))
            sizes[size] = sizes.get(size, 0) + executions
    return ModelStatistics(
        inferences=sum(int(entry.get("inference_count", 0)) for entry in entries),
        executions=sum(int(entry.get("execution_count", 0)) for entry in entries),
        requests_succeeded=total("success", "count"),
        requests_failed=total("fail", "count"),
        queue_ms=mean_ms("queue"),
        compute_ms=mean_ms("compute_infer", "compute_input", "compute_output"),
        batch_sizes=dict(sorted(sizes.items())),
    )
