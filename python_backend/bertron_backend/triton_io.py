"""Triton server's requests and responses to ours and back: the one file that knows its types."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from bertron_backend.batch_metrics import DESCRIPTIONS, Counter
from bertron_backend.batch_tokenizer import TextRequest, TokenBatch
from bertron_backend.encoder_queue import QueueExit, Ticket, monotonic_us
from bertron_backend.errors import (
    ExpiredError,
    InferenceError,
    InvalidInputError,
    OverloadedError,
    quoted,
)
from bertron_backend.packing import TokenRequest

if TYPE_CHECKING:  # the tokenizer's process loads no torch
    from bertron_backend.cost_model import CostModel
    from bertron_backend.encoder import FloatArray

# Each class of ours is one code of Triton server's; anything else is a defect of ours. By name: the
# stub adds TritonError to its module only after it has imported the model's.
_CODES: dict[type[Exception], str] = {
    InvalidInputError: "INVALID_ARG",
    InferenceError: "INTERNAL",
    ExpiredError: "UNAVAILABLE",
    OverloadedError: "UNAVAILABLE",
}
# Outputs of the tokenizer that the ensemble never takes. What it tells of its texts comes out of
# the encoder, by the ticket: of a request for that alone, Triton server would leave out the
# encoder, and the tokenizer count tokens as waiting there that never come.
_TOKEN_STRINGS = frozenset({"TOKENS", "OFFSETS"})
_OF_TEXTS = frozenset({"TOKEN_COUNT", "TRUNCATED"})


def version_directory(args: dict[str, str]) -> Path:
    """Where the model's version lies, from what Triton server passes to ``initialize``."""
    return Path(args["model_repository"]) / args["model_version"]


def device_of(args: dict[str, str]) -> str:
    """The torch device of this instance."""
    return (
        f"cuda:{args['model_instance_device_id']}"
        if args["model_instance_kind"] == "GPU"
        else "cpu"
    )


def log_info(message: str) -> None:
    """Write to the server's log."""
    pb_utils.Logger.log_info(message)


class InstanceMetrics:
    """What one instance of the encoder shows among the server's metrics.

    Every instance shows its own, told apart by ``model_instance``. Triton server 2.51 frees a
    metric that two of them share when the first one ends, and the second writes into freed memory.

    Args:
        args: What Triton server passes to ``initialize``.
    """

    def __init__(self, args: dict[str, str]) -> None:
        self._labels = {"model": args["model_name"], "model_instance": args["model_instance_name"]}
        self._families: dict[str, Any] = {}  # a metric is gone with its family
        self._counters: dict[Counter, Any] = {}

    def show_cost(self, cost: CostModel) -> None:
        """Show the cost model, as ``bertron_forward_cost_ms``."""
        family = self._family(
            "bertron_forward_cost_ms",
            "Milliseconds of a forward: fixed + token * tokens + pair * sum(tokens^2)",
            pb_utils.MetricFamily.GAUGE,
        )
        for part, value in (
            ("fixed", cost.fixed_ms),
            ("token", cost.token_ms),
            ("pair", cost.pair_ms),
        ):
            family.Metric(labels={**self._labels, "part": part}).set(value)

    def add(self, counter: Counter, growth: int) -> None:
        """Add to a counter; it is shown from the first time on.

        That is a message to the server's process, 20 us in which no other thread runs Python.
        """
        if counter not in self._counters:
            kind = pb_utils.MetricFamily.COUNTER
            family = self._family(counter.name, DESCRIPTIONS[counter.name], kind)
            bucket = {} if counter.le is None else {"le": counter.le}
            self._counters[counter] = family.Metric(labels={**self._labels, **bucket})
        if growth:
            self._counters[counter].increment(growth)

    def remove(self) -> None:
        """Take all away; the stub's process crashes at its end over what is still there."""
        self._counters.clear()
        self._families.clear()

    def _family(self, name: str, description: str, kind: Any) -> Any:
        if name not in self._families:
            family = pb_utils.MetricFamily(name=name, description=description, kind=kind)
            self._families[name] = family
        return self._families[name]


def answer_each(
    requests: Sequence[Any],
    read: Callable[[Any], Any],
    answer: Callable[[list[Any]], Sequence[Any]],
    respond: Callable[[Any, Any], Any],
) -> list[Any]:
    """Read every request, answer the readable ones together, and give each its own response.

    Args:
        requests: Triton server's requests.
        read: One request to our type; may raise a RequestError.
        answer: All of ours to a result or an error each, in order.
        respond: One request and its result to Triton server's response.

    Returns:
        One response a request, in order: nothing is raised, so that nobody's error is shared.
    """
    results: list[Any] = []
    for request in requests:
        try:
            results.append(read(request))
        except Exception as error:
            results.append(error)
    readable = [index for index, result in enumerate(results) if not isinstance(result, Exception)]
    if readable:
        try:
            answers = answer([results[index] for index in readable])
        except Exception as error:
            answers = [error] * len(readable)
        for index, result in zip(readable, answers, strict=True):
            results[index] = result
    return [
        _error_response(result) if isinstance(result, Exception) else respond(request, result)
        for request, result in zip(requests, results, strict=True)
    ]


def may_take_us(request: Any, max_wait_us: int) -> int:
    """How long a request's answer is waited for: its own ``timeout``, at most ``max_wait_us``."""
    return min(request.timeout() or max_wait_us, max_wait_us)


def is_for_encoder(request: Any) -> bool:
    """Whether the tokenizer's answer goes on to the encoder.

    It does not where token strings are asked for, as by those who call the tokenizer directly and
    name no outputs.
    """
    names = request.requested_output_names()
    return "ticket" in names and _TOKEN_STRINGS.isdisjoint(names)


def read_texts(request: Any) -> TextRequest:
    """TEXT, TEXT_PAIR and the parameters ``truncate`` and ``is_pretokenized`` of one request.

    Raises:
        InvalidInputError: There is no TEXT, it or a parameter is not UTF-8, or
            ``is_pretokenized`` is neither true nor false.
    """
    parameters = _parameters(request)
    inputs = _inputs(request)
    if "TEXT" not in inputs:  # Triton server lets a request without it through to us
        raise InvalidInputError("the request has no TEXT")
    pairs = inputs.get("TEXT_PAIR")
    return TextRequest(
        texts=_decoded("TEXT", inputs["TEXT"]),
        pairs=None if pairs is None else _decoded("TEXT_PAIR", pairs),
        truncate=str(parameters.get("truncate", "right")),
        is_pretokenized=_flag(parameters, "is_pretokenized"),
        wants_tokens=not _TOKEN_STRINGS.isdisjoint(request.requested_output_names()),
    )


def token_response(request: Any, answer: tuple[TokenBatch, Ticket]) -> Any:
    """The tokenizer's response, with the ticket for the encoder."""
    batch, ticket = answer
    tickets = np.empty((len(batch.token_count), len(ticket) + 1), dtype=np.int64)
    tickets[:, :-1] = ticket
    tickets[:, -1:] = batch.truncated
    outputs: dict[str, npt.NDArray[Any] | None] = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "token_type_ids": batch.token_type_ids,
        "ticket": tickets,
        "TOKENS": batch.tokens,
        "OFFSETS": batch.offsets,
    }
    if not _OF_TEXTS.isdisjoint(request.requested_output_names()):
        outputs |= {"TOKEN_COUNT": batch.token_count, "TRUNCATED": batch.truncated}
    return _response(**{name: array for name, array in outputs.items() if array is not None})


def read_tokens(request: Any, queue: QueueExit) -> TokenRequest:
    """The encoder's inputs, each [b, s] int32; ``queue`` sees the request's ticket, if it has one.

    Raises:
        ExpiredError: Nobody waits for the answer any more; computing it would delay the others.
    """
    inputs = _inputs(request)
    input_ids, tickets = inputs["input_ids"].as_numpy(), _tickets(inputs)
    if tickets is not None:
        ticket = Ticket(*tickets[0, :-1].tolist())  # each text's is the same
        late_us = monotonic_us() - ticket.deadline_us
        queue.see(ticket, size=input_ids.size, is_late=late_us > 0)
        if late_us > 0:
            raise ExpiredError(
                f"Request timeout expired {late_us / 1e6:.3f} s before the encoder came to it; "
                "the server is overloaded"
            )
    return TokenRequest(
        input_ids=input_ids,
        attention_mask=inputs["attention_mask"].as_numpy(),
        token_type_ids=inputs["token_type_ids"].as_numpy(),
        truncated=None if tickets is None else tickets[:, -1:] != 0,
    )


def embedding_response(_request: Any, answer: tuple[TokenRequest, FloatArray]) -> Any:
    """The encoder's response; a text that came without a ticket was not cut by anybody here."""
    tokens, rows = answer
    cut = np.zeros((len(rows), 1), dtype=np.bool_) if tokens.truncated is None else tokens.truncated
    counts = tokens.attention_mask.sum(axis=1, keepdims=True, dtype=np.int32)
    return _response(EMBEDDING=rows, TOKEN_COUNT=counts, TRUNCATED=cut)


def _inputs(request: Any) -> dict[str, Any]:
    """Its tensors by name, in one look: asking for each by its name goes through all each time."""
    return {tensor.name(): tensor for tensor in request.inputs()}


def _tickets(inputs: dict[str, Any]) -> npt.NDArray[np.int64] | None:
    """[b, 5], a ticket and whether the text was cut; None where the tokenizer was passed by."""
    tensor = inputs.get("ticket")
    rows = None if tensor is None else tensor.as_numpy()
    return rows if rows is not None and len(rows) else None


def _parameters(request: Any) -> dict[str, Any]:
    try:
        found = request.parameters()
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"a parameter is not UTF-8: byte 0x{error.object[error.start]:02x}"
        ) from None
    parameters: dict[str, Any] = json.loads(found or "{}")
    return parameters


def _flag(parameters: dict[str, Any], name: str) -> bool:
    # A curl command or a header can only spell it: "true".
    value = str(parameters.get(name, False)).lower()
    if value not in ("true", "false"):
        raise InvalidInputError(f"{name} is {quoted(parameters[name])}, not true or false")
    return value == "true"


def _decoded(name: str, tensor: Any) -> list[str]:
    texts = []
    for index, raw in enumerate(tensor.as_numpy().ravel().tolist()):
        try:
            texts.append(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise InvalidInputError(
                f"{name} {index} is not UTF-8: byte 0x{raw[error.start]:02x} "
                f"at position {error.start}"
            ) from None
    return texts


def _response(**arrays: np.ndarray[Any, Any]) -> Any:
    tensors = [pb_utils.Tensor(name, array) for name, array in arrays.items()]
    return pb_utils.InferenceResponse(output_tensors=tensors)


def _error_response(error: Exception) -> Any:
    code_name = _CODES.get(type(error))
    if code_name is None:
        # Ours to find in the log; a client gets no traceback, and the log no text of a user.
        where = "".join(traceback.format_tb(error.__traceback__))
        pb_utils.Logger.log_error(f"{type(error).__name__} while answering a request:\n{where}")
        return pb_utils.InferenceResponse(
            error=pb_utils.TritonError("internal error", pb_utils.TritonError.INTERNAL)
        )
    code = getattr(pb_utils.TritonError, code_name)
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))
