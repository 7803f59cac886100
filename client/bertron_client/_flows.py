"""What each method of a client does, step by step, without I/O.

A flow is a generator: it yields what it wants done (an operation of ``_wire.operations``, or one
of the steps below), is sent the result or thrown the error, and returns what the caller gets.
``Client`` does the steps with threads, ``AsyncClient`` with tasks; what the steps are, they share.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from functools import partial
from typing import (
    Any,
    Callable,
    Dict,
    Generator,
    Iterable,
    List,
    Mapping,
    Optional,
    Sequence,
    Union,
)

from ._answers import (
    EMBEDDING_OUTPUTS,
    TEXT,
    TEXT_PAIR,
    TOKEN_OUTPUTS,
    Limits,
    embedding_output_bytes,
    make_server_info,
    read_embeddings,
    read_limits,
    read_statistics,
    read_tokens,
    with_caller_index,
)
from ._call import Call
from ._exceptions import (
    RESTRICTED,
    AuthenticationError,
    BertronError,
    DeadlineExceededError,
    InvalidInputError,
    ModelNotFoundError,
    OverloadedError,
    ProtocolError,
    ServerError,
    ServerUnavailableError,
)
from ._models import Embeddings, TokenizedText
from ._planning import Batch, plan_batches, request_bytes
from ._retry import RetryPolicy
from ._shared_memory import Layout, Region, Regions
from ._texts import TextOptions, Texts
from ._vectors import checked_dimensions, cut_and_normalize
from ._wire import operations
from ._wire.operations import Infer, InputTensor, Operation, Output
from ._wire.tensors import bytes_tensor

# A request's own queue timeout ends with the call's; which side notices first is chance, and
# within this much of the end both mean the same to the caller.
_DEADLINE_TIE_S = 0.1
# Triton server 2.51's words.
_UNKNOWN_REGION = re.compile(r"unable to find shared memory region", re.IGNORECASE)
# Definite answers to a question about a region; after any other fault it may have been answered.
_REFUSALS = (AuthenticationError, InvalidInputError)
# Before one request: after a long outage there may be thousands.
_MOST_UNREGISTERED = 8
_PROBE_TIMEOUT_S = 2.0
_PROBE_PAUSE_S = (0.05, 0.5)  # first and longest pause between two probes


@dataclass(frozen=True)
class Pause:
    """Wait."""

    seconds: float


@dataclass(frozen=True)
class Probe:
    """An operation with a time limit of its own, shorter than the call's."""

    operation: Operation
    timeout_s: float


@dataclass(frozen=True)
class Together:
    """Flows to be run at the same time, no more than the client allows; each returns None.

    The first that fails ends the others.
    """

    flows: Iterable[Flow]
    count: int


Step = Union[Operation, Pause, Probe, Together]
Flow = Generator[Step, Any, Any]


class Flows:
    """The flows of one client, and what they remember of the server."""

    def __init__(
        self, url: str, model: str, retry: RetryPolicy, regions: Optional[Regions] = None
    ) -> None:
        self._url = url
        self._model = model
        self._retry = retry
        self._regions = regions
        self.where = f"model '{model}' at {url}"
        self._limits: Optional[Limits] = None

    def embed(
        self, texts: Texts, options: TextOptions, call: Call, on_done: Callable[[int], object]
    ) -> Flow:
        """Return Embeddings, a row for each text; ``on_done`` is told of each batch's size."""
        limits = yield from self.limits(call)
        size = _output_size(options, limits)
        rows = Embeddings.empty(len(texts), size)

        def place(batch: Batch, answer: Embeddings) -> None:
            indices = batch.indices
            rows.vectors[indices] = answer.vectors
            rows.token_counts[indices] = answer.token_counts
            rows.truncated[indices] = answer.truncated
            on_done(len(indices))

        def one(batch: Batch) -> Flow:
            place(batch, (yield from self.embed_batch(batch, options, limits, call)))

        yield from self._all_batches(texts, limits, one, call)
        return rows

    def tokenize(self, texts: Texts, options: TextOptions, call: Call) -> Flow:
        """Return a list of TokenizedText."""
        limits = yield from self.limits(call)
        if limits.tokenizer is None:
            raise ProtocolError(f"the model has no tokenizer of its own to ask ({self.where})")
        rows: List[Optional[TokenizedText]] = [None] * len(texts)

        def one(batch: Batch) -> Flow:
            read = partial(read_tokens, count=len(batch.indices))
            model = str(limits.tokenizer)
            operation = _infer_operation(model, batch, options, TOKEN_OUTPUTS, {})
            answer = yield from self._infer(operation, batch, read, call)
            for index, row in zip(batch.indices, answer):
                rows[index] = row

        yield from self._all_batches(texts, limits, one, call)
        return rows

    def embed_batch(self, batch: Batch, options: TextOptions, limits: Limits, call: Call) -> Flow:
        """Return Embeddings of one batch, in the batch's order."""
        read = partial(
            read_embeddings, count=len(batch.indices), embedding_size=limits.embedding_size
        )
        operation = _infer_operation(
            self._model,
            batch,
            options,
            EMBEDDING_OUTPUTS,
            embedding_output_bytes(len(batch.indices), limits.embedding_size),
        )
        answer = yield from self._infer(operation, batch, read, call)
        vectors = cut_and_normalize(answer.vectors, options.normalize, options.dimensions)
        return Embeddings(vectors, answer.token_counts, answer.truncated)

    def is_ready(self) -> Flow:
        """Return whether the server says that the model answers."""
        try:
            return bool((yield operations.ModelReady(self._model)))
        except BertronError:
            return False

    def wait_until_ready(self, timeout_s: float, call: Call) -> Flow:
        """Return once the server says that the model answers."""
        pause_s, longest_pause_s = _PROBE_PAUSE_S
        fault: Optional[BertronError] = None
        while not call.is_over():
            try:
                if (yield Probe(operations.ModelReady(self._model), _PROBE_TIMEOUT_S)):
                    return
                fault = None
            except BertronError as error:
                fault = error
            if call.is_over(within_s=pause_s):
                break
            yield Pause(pause_s)
            pause_s = min(pause_s * 1.5, longest_pause_s)
        raise DeadlineExceededError(
            f"not ready within {timeout_s:g} s: {fault or 'the server says so'} ({self.where})"
        ) from fault

    def server_info(self, call: Call) -> Flow:
        """Return ServerInfo, asked for anew."""
        self._limits = None
        limits = yield from self.limits(call)
        server = yield from self._ask(operations.ServerMetadata(), call)
        metadata = yield from self._ask(operations.ModelMetadata(self._model), call)
        encoder: Any = {}
        if limits.steps:
            encoder = yield from self._ask(operations.ModelConfig(limits.steps[-1]), call)
        return make_server_info(self._url, self._model, limits, server, metadata, encoder)

    def statistics(self, call: Call) -> Flow:
        """Return ModelStatistics by model."""
        value = yield from self._ask(operations.ModelStatistics(), call)
        return read_statistics(value, self.where)

    def limits(self, call: Call) -> Generator[Step, Any, Limits]:
        """Return the model's limits, asked for once; two calls that ask at once do no harm."""
        limits = self._limits
        if limits is None:
            config = yield from self._ask(operations.ModelConfig(self._model), call)
            limits = self._limits = read_limits(config, self.where)
        return limits

    def _all_batches(
        self, texts: Texts, limits: Limits, one: Callable[[Batch], Flow], call: Call
    ) -> Flow:
        """Run ``one`` for every batch that the texts make."""
        texts.check(limits.max_characters_per_text)
        batches = plan_batches(
            texts.first,
            texts.second,
            max_batch_size=limits.max_batch_size,
            max_bytes=request_bytes(limits.max_characters_per_request),
        )
        if len(batches) == 1:
            yield from one(batches[0])
        elif batches:
            call.has_siblings = True
            yield Together(map(one, batches), len(batches))

    def _infer(
        self,
        operation: Infer,
        batch: Batch,
        read: Callable[[Mapping[str, Output]], Any],
        call: Call,
    ) -> Flow:
        """Return what ``read`` makes of the answer to one batch."""
        try:
            if self._regions is not None and operation.output_bytes:
                once = partial(self._through_memory, operation, self._regions, call)
                answer = yield from self._retrying(once, call)
            else:
                answer = yield from self._ask(operation, call)
            try:
                return read(answer)
            except ProtocolError as error:
                raise ProtocolError(f"{error} ({self.where})") from None
        except BertronError as error:
            named = with_caller_index(error, batch.indices)
            try:
                self._learn_from(named)
                if isinstance(error, OverloadedError) and call.is_over(within_s=_DEADLINE_TIE_S):
                    raise call.exceeded() from error
                if named is not error:
                    raise named from error
                raise
            finally:
                del named  # or the error and this frame would hold each other, and all the texts

    def _ask(self, operation: Operation, call: Call) -> Flow:
        """Do one operation, and again where that can help."""
        return (yield from self._retrying(lambda: _once(operation), call))

    def _retrying(self, once: Callable[[], Flow], call: Call) -> Flow:
        for retries in itertools.count():
            try:
                return (yield from once())
            except BertronError as error:
                pause_s = self._retry.pause_s(error, retries)
                if pause_s is None or call.is_over(within_s=pause_s):
                    raise
            yield Pause(pause_s)

    def _through_memory(self, operation: Infer, regions: Regions, call: Call) -> Flow:
        """Do an inference whose tensors lie in shared memory."""
        yield from self._unregister(regions.due(_MOST_UNREGISTERED), regions)
        layout = Layout(operation)
        region = regions.acquire(layout.byte_size)
        is_answered = False  # else the server may still write into the region
        try:
            placed = layout.put(region)
            if not region.is_registered:
                yield from self._register(region)
            try:
                outputs = layout.take((yield placed), region)
            except (InvalidInputError, OverloadedError, ServerError) as error:
                is_answered = True
                if _UNKNOWN_REGION.search(str(error)):  # another server by now: register anew
                    region.is_registered = False
                    raise ServerUnavailableError(str(error)) from error
                raise
            is_answered = True
            return outputs
        finally:
            if is_answered:
                regions.release(region)
            else:
                regions.abandon(region, call.left_s)

    def _register(self, region: Region) -> Flow:
        region.is_registered = True  # a lost answer may have been a yes
        try:
            yield operations.RegisterRegion(region.name, region.key, region.byte_size)
        except _REFUSALS as error:
            region.is_registered = False
            if not RESTRICTED.search(str(error)):  # a token is missing, say
                raise
            raise AuthenticationError(
                "the server does not let clients register shared memory; start it with "
                f"`bertron serve --shared-memory`, or leave out shared_memory=True ({self.where})"
            ) from error

    def close(self) -> Flow:
        """Give back what the server keeps for this client."""
        if self._regions is not None:
            yield from self._unregister(self._regions.drain(), self._regions)

    def forget(self) -> None:
        """Let go of what belongs to the parent of this process."""
        if self._regions is not None:
            self._regions.forget()

    def _unregister(self, names: List[str], regions: Regions) -> Flow:
        """Have the server let go of regions; those that it may still hold are due again."""
        try:
            while names:
                try:
                    yield operations.UnregisterRegion(names[-1])
                except _REFUSALS:  # asking again would not help
                    pass
                except BertronError:
                    return
                names.pop()
        finally:
            regions.put_back(names)

    def _learn_from(self, error: BertronError) -> None:
        """Forget the limits where another model may answer under this url by now."""
        is_vague = isinstance(error, InvalidInputError) and error.index is None
        if is_vague or isinstance(
            error, (ProtocolError, ServerUnavailableError, ModelNotFoundError)
        ):
            self._limits = None


def _output_size(options: TextOptions, limits: Limits) -> int:
    """Components of the vectors that the caller gets."""
    if options.dimensions is None:
        return limits.embedding_size
    return checked_dimensions(options.dimensions, limits.embedding_size)


def _once(operation: Operation) -> Flow:
    return (yield operation)


def _infer_operation(
    model: str,
    batch: Batch,
    options: TextOptions,
    outputs: Sequence[str],
    output_bytes: Dict[str, int],
) -> Infer:
    shape = (len(batch.indices), 1)
    inputs = [InputTensor(TEXT, shape, bytes_tensor(batch.texts))]
    if batch.text_pairs is not None:
        inputs.append(InputTensor(TEXT_PAIR, shape, bytes_tensor(batch.text_pairs)))
    parameters: Dict[str, Union[str, bool]] = {"truncate": options.truncate}
    if options.is_pretokenized:
        parameters["is_pretokenized"] = True
    return Infer(model, inputs, dict.fromkeys(outputs), parameters, output_bytes)
