"""The blocking client."""

from __future__ import annotations

import itertools
import threading
import time
from types import TracebackType
from typing import Iterable, List, Optional, Sequence, Type

from ._call import Call, checked_timeout_s
from ._codec import (
    TRUNCATE_CHOICES,
    Request,
    check_lengths,
    collect_texts,
    encode_texts,
    join_answers,
    plan_requests,
    read_answer,
    read_server_info,
    with_caller_index,
)
from ._exceptions import (
    BertronError,
    DeadlineExceededError,
    InvalidInputError,
    ModelNotFoundError,
    OverloadedError,
    ProtocolError,
    ServerError,
    ServerUnavailableError,
)
from ._models import Embeddings, ServerInfo
from ._transports import open_transport, parse_url

DEFAULT_TIMEOUT_S = 30.0
# Enough for the server's batcher to have requests waiting while others travel, and few enough that
# one caller with a long list does not fill the server's queue.
DEFAULT_REQUESTS_IN_FLIGHT = 4
# A request's own queue timeout ends with the call's; which side notices first is chance, and
# within this much of the end both mean the same to the caller.
_DEADLINE_TIE_S = 0.1
_PROBE_TIMEOUT_S = 2.0
_PROBE_PAUSE_S = (0.05, 0.5)  # first and longest pause between two probes


class Client:
    """Sentence embeddings from a Bertron server. Safe to share between threads.

        with Client("grpc://127.0.0.1:8001") as client:
            vectors = numpy.asarray(client.embed(["a text", "another"]))

    Nothing is sent before the first call.

    Args:
        url: ``grpc://host:port`` or ``http://host:port``.
        model: Name of the ensemble.
        timeout_s: Limit of each call as a whole, connecting and all its requests included.
        max_requests_in_flight: Requests that one call has at the server at a time.

    Raises:
        ValueError: An argument that no server could make right.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str = "text_embedding",
        timeout_s: float = DEFAULT_TIMEOUT_S,
        max_requests_in_flight: int = DEFAULT_REQUESTS_IN_FLIGHT,
    ) -> None:
        self._url = parse_url(url)
        if not model or not isinstance(model, str):
            raise ValueError(f"model is {model!r}, a name is wanted")
        if max_requests_in_flight < 1:
            raise ValueError(
                f"max_requests_in_flight is {max_requests_in_flight}, it must be at least 1"
            )
        self._model = model
        self._timeout_s = checked_timeout_s(timeout_s)
        self._max_requests_in_flight = max_requests_in_flight
        self._where = f"model '{model}' at {self._url}"
        self._transport = open_transport(self._url)
        self._info: Optional[ServerInfo] = None
        self._is_closed = False

    def embed(
        self,
        texts: Iterable[str],
        *,
        text_pairs: Optional[Iterable[str]] = None,
        truncate: str = "right",
        timeout_s: Optional[float] = None,
    ) -> Embeddings:
        """Return one vector for each text, in order.

        Any number of texts: they are split into requests the server takes, several of them in
        flight at a time. All or nothing: the first request that fails fails the call.

        Args:
            texts: Any ordered iterable of str; a generator is read to its end first.
            text_pairs: As many second texts, for models that read sentence pairs.
            truncate: Which end of a text that is too long is cut, "right" or "left"; "error"
                refuses it.
            timeout_s: The whole call, from when the texts are at hand; None takes the client's.

        Raises:
            InvalidInputError: A text cannot be served; ``.index`` says which.
            DeadlineExceededError: ``timeout_s`` passed.
            ServerUnavailableError: No connection, or one that was lost.
            OverloadedError: The server's queue was full.
            ModelNotFoundError: The server has no such model.
            ServerError: The server failed.
            ProtocolError: The answer was not a right one.
            TypeError: ``texts`` is a single str, or not iterable.
        """
        if truncate not in TRUNCATE_CHOICES:
            raise InvalidInputError(
                f"truncate is {truncate!r}, one of {', '.join(TRUNCATE_CHOICES)} is wanted"
            )
        first = collect_texts(texts, "texts")
        second = None if text_pairs is None else collect_texts(text_pairs, "text_pairs")
        if second is not None and len(second) != len(first):
            raise InvalidInputError(
                f"{len(second)} text_pairs came with {len(first)} texts, one each is wanted"
            )
        call = self._call(timeout_s)
        encoded = encode_texts(first, "texts")
        encoded_pairs = None if second is None else encode_texts(second, "text_pairs")
        try:
            info = self._known_info(call)
            check_lengths(first, info.max_characters_per_text, "texts")
            check_lengths(second or (), info.max_characters_per_text, "text_pairs")
            requests = plan_requests(
                encoded, encoded_pairs, truncate=truncate, max_batch_size=info.max_batch_size
            )
            answers = self._infer_all(requests, info.embedding_size, call)
        except (ProtocolError, ServerUnavailableError, ModelNotFoundError):
            self._info = None  # another model may answer under this url by now
            raise
        except InvalidInputError as error:
            if error.index is None:
                self._info = None  # perhaps max_batch_size is another by now
            raise
        except OverloadedError as error:
            if call.is_over(within_s=_DEADLINE_TIE_S):
                raise call.exceeded() from error
            raise
        return join_answers(requests, answers, len(first), info.embedding_size)

    def is_ready(self, *, timeout_s: Optional[float] = None) -> bool:
        """Whether the server is there and says that the model answers. Never raises for a fault."""
        call = self._call(timeout_s)
        try:
            return self._transport.is_model_ready(self._model, call)
        except BertronError:
            return False

    def wait_until_ready(self, timeout_s: float) -> None:
        """Return as soon as the model answers.

        Raises:
            DeadlineExceededError: It did not within ``timeout_s``; its cause is the last fault.
        """
        call = self._call(timeout_s)
        pause_s, longest_pause_s = _PROBE_PAUSE_S
        fault: Optional[BertronError] = None
        while not call.is_over():
            probe = self._call(min(_PROBE_TIMEOUT_S, call.remaining_s()))
            try:
                if self._transport.is_model_ready(self._model, probe):
                    return
            except BertronError as error:
                fault = error
            if call.is_over(within_s=pause_s):
                break
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, longest_pause_s)
        raise DeadlineExceededError(
            f"not ready within {timeout_s:g} s: {fault or 'the server says so'} ({self._where})"
        ) from fault

    def server_info(self, *, timeout_s: Optional[float] = None) -> ServerInfo:
        """Ask the server what it is, which model it serves and within which limits.

        Raises:
            BertronError: As ``embed``.
        """
        self._info = self._ask_info(self._call(timeout_s))
        return self._info

    def close(self) -> None:
        """Drop all connections. Any later call raises RuntimeError."""
        self._is_closed = True
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({str(self._url)!r}, model={self._model!r}, timeout_s={self._timeout_s:g})"

    def _call(self, timeout_s: Optional[float]) -> Call:
        if self._is_closed:
            raise RuntimeError(f"the client is closed ({self._where})")
        return Call(self._where, self._timeout_s if timeout_s is None else timeout_s)

    def _known_info(self, call: Call) -> ServerInfo:
        """The limits, asked for once; two threads that ask at once do no harm."""
        info = self._info
        if info is None:
            info = self._info = self._ask_info(call)
        return info

    def _ask_info(self, call: Call) -> ServerInfo:
        config = self._transport.model_config(self._model, call)
        version = self._transport.server_version(call)
        return read_server_info(str(self._url), self._model, version, config)

    def _infer(self, request: Request, embedding_size: int, call: Call) -> Embeddings:
        try:
            outputs = self._transport.infer(self._model, request, call)
        except (InvalidInputError, ServerError) as error:
            raise with_caller_index(error, request) from error
        try:
            return read_answer(outputs, len(request.texts), embedding_size)
        except ProtocolError as error:
            raise ProtocolError(f"{error} ({self._where})") from None

    def _infer_all(
        self, requests: Sequence[Request], embedding_size: int, call: Call
    ) -> List[Embeddings]:
        """Send all requests, a bounded number at a time; the calling thread does its share."""
        if len(requests) == 1:
            return [self._infer(requests[0], embedding_size, call)]
        call.has_siblings = True
        answers: List[Optional[Embeddings]] = [None] * len(requests)
        errors: List[BaseException] = []
        numbers = itertools.count()

        def work() -> None:
            try:
                for number in numbers:  # count.__next__ is atomic, each number is taken once
                    if number >= len(requests) or call.is_cancelled:
                        return
                    answers[number] = self._infer(requests[number], embedding_size, call)
            except BaseException as error:
                errors.append(error)
                call.cancel()

        threads = [
            threading.Thread(target=work, name=f"bertron-request-{number}", daemon=True)
            for number in range(1, min(self._max_requests_in_flight, len(requests)))
        ]
        try:
            for thread in threads:
                thread.start()
            work()
            for thread in threads:
                thread.join()  # each of its requests ends with the call's deadline
        except BaseException:
            call.cancel()
            raise
        if errors:
            raise errors[0]
        return [answer for answer in answers if answer is not None]
