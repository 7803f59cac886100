"""The blocking client."""

from __future__ import annotations

import os
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from itertools import islice
from types import TracebackType
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Set, Type

from ._base_client import (
    CLOSE_TIMEOUT_S,
    DEFAULT_CONNECT_TIMEOUT_S,
    DEFAULT_REQUESTS_IN_FLIGHT,
    DEFAULT_TIMEOUT_S,
    BaseClient,
)
from ._call import Call
from ._exceptions import BertronError
from ._flows import Flow, Pause, Probe, Step, Together
from ._inputs import iterate_texts
from ._models import Embedding, Embeddings, ModelStatistics, ServerInfo, TokenizedText
from ._planning import Batch
from ._progress import ProgressOption, progress_of
from ._retry import RetryPolicy
from ._streaming import Stream
from ._texts import TextOptions, Texts
from ._tls import Tls
from ._transports import open_transport
from ._transports.base import Transport


class Client(BaseClient):
    """Sentence embeddings from a Bertron server. Safe to share between threads and over a fork.

        with Client("grpc://127.0.0.1:8001") as client:
            vectors = numpy.asarray(client.embed(["a text", "another"]))

    Nothing is sent before the first call.

    Args:
        url: ``grpc://host:port`` or ``http://host:port``; ``grpcs://`` and ``https://`` over TLS.
        model: Name of the ensemble.
        timeout_s: Limit of each call as a whole, connecting and all its requests included.
        connect_timeout_s: Limit of opening one connection, within that.
        max_requests_in_flight: Requests that one call has at the server at a time.
        retry: What is tried again; None takes RetryPolicy's defaults.
        headers: Sent with every request; over gRPC as metadata.
        token: Sent as ``Authorization: Bearer``.
        compression: "gzip" for requests and answers, or None.
        tls: Certificates, for https and grpcs; None trusts the system's authorities.
        proxy: Of HTTP and https: ``http://[user:password@]host:port``, or "environment" for
            HTTP_PROXY, HTTPS_PROXY and NO_PROXY; None connects directly.
        shared_memory: Exchange tensors through POSIX shared memory, with a server on this machine
            that allows it (``bertron serve --shared-memory``).
        transport: What carries the operations instead, such as ``testing.MockTransport``.

    Raises:
        TypeError: An argument of a type that cannot be meant.
        ValueError: An argument that no server could make right.
        OSError: A file that ``tls`` names cannot be read.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str = "text_embedding",
        timeout_s: float = DEFAULT_TIMEOUT_S,
        connect_timeout_s: float = DEFAULT_CONNECT_TIMEOUT_S,
        max_requests_in_flight: int = DEFAULT_REQUESTS_IN_FLIGHT,
        retry: Optional[RetryPolicy] = None,
        headers: Optional[Mapping[str, str]] = None,
        token: Optional[str] = None,
        compression: Optional[str] = None,
        tls: Optional[Tls] = None,
        proxy: Optional[str] = None,
        shared_memory: bool = False,
        transport: Optional[Transport] = None,
    ) -> None:
        super().__init__(
            url,
            model=model,
            timeout_s=timeout_s,
            connect_timeout_s=connect_timeout_s,
            max_requests_in_flight=max_requests_in_flight,
            retry=retry,
            headers=headers,
            token=token,
            compression=compression,
            tls=tls,
            proxy=proxy,
            shared_memory=shared_memory,
            transport=transport,
            open_transport=open_transport,
        )

    def embed(
        self,
        texts: Iterable[Any],
        *,
        text_pairs: Optional[Iterable[Any]] = None,
        truncate: str = "right",
        normalize: Optional[bool] = None,
        dimensions: Optional[int] = None,
        is_pretokenized: bool = False,
        progress: ProgressOption = False,
        timeout_s: Optional[float] = None,
    ) -> Embeddings:
        """Return one vector for each text, in order.

        Any number of texts: they are split into requests the server takes, several of them in
        flight at a time. All or nothing: the first request that fails for good fails the call.

        Args:
            texts: Any ordered collection of str: a list, generator, numpy array, pandas or polars
                Series, Arrow array. A generator is read to its end first.
            text_pairs: As many second texts, for models that read sentence pairs.
            truncate: Which end of a text that is too long is cut, "right" or "left"; "error"
                refuses it.
            normalize: True gives every vector length 1, a zero vector aside; else they are as the
                model makes them.
            dimensions: Keep the first so many components, for models trained for that; before
                ``normalize``. None keeps all.
            is_pretokenized: Each text is a list of tokens, which are looked up in the vocabulary
                as they stand; special tokens are added.
            progress: True shows a bar of tqdm's; a function is told of texts done since last;
                False or None show nothing.
            timeout_s: The whole call, from when the texts are at hand; None takes the client's.

        Raises:
            InvalidInputError: A text cannot be served; ``.index`` says which.
            DeadlineExceededError: ``timeout_s`` passed.
            ServerUnavailableError: No connection, or one that was lost.
            OverloadedError: The server's queue was full.
            AuthenticationError: The server does not accept this caller, or is not to be trusted.
            ModelNotFoundError: The server has no such model.
            ServerError: The server failed.
            ProtocolError: The answer was not a right one.
            TypeError: ``texts`` is a single str, or not iterable; ``normalize`` is no bool.
            ValueError: ``dimensions`` is more than the vectors have.
        """
        options = TextOptions(truncate, is_pretokenized, normalize, dimensions)
        collected = Texts(texts, text_pairs, options)
        call = self._call(timeout_s)
        with progress_of(progress, len(collected)) as on_done:
            embeddings: Embeddings = self._run(
                self._flows.embed(collected, options, call, on_done), call
            )
        return embeddings

    def embed_iter(
        self,
        texts: Iterable[Any],
        *,
        text_pairs: Optional[Iterable[Any]] = None,
        truncate: str = "right",
        normalize: Optional[bool] = None,
        dimensions: Optional[int] = None,
        is_pretokenized: bool = False,
        ordered: bool = True,
        timeout_s: Optional[float] = None,
    ) -> Iterator[Embedding]:
        """Yield an Embedding for each text, in bounded memory: texts may go on without end.

        Texts are read some hundreds ahead (so that those of like length share a request) and no
        further than the caller takes the rows. What was read and not answered when an error ends
        the stream, or the caller does, is dropped.

        Args:
            texts: As for ``embed``, or an endless iterator.
            text_pairs: As for ``embed``.
            truncate: As for ``embed``.
            normalize: As for ``embed``.
            dimensions: As for ``embed``.
            is_pretokenized: As for ``embed``.
            ordered: False yields each row as it arrives; ``index`` says whose it is.
            timeout_s: Of each request, its retries included; None takes the client's.

        Raises:
            BertronError: As ``embed``, from the iterator.
        """
        return self._stream(
            iterate_texts(texts, "texts"),
            None if text_pairs is None else iterate_texts(text_pairs, "text_pairs"),
            TextOptions(truncate, is_pretokenized, normalize, dimensions),
            ordered,
            timeout_s,
        )

    def tokenize(
        self,
        texts: Iterable[Any],
        *,
        text_pairs: Optional[Iterable[Any]] = None,
        truncate: str = "right",
        is_pretokenized: bool = False,
        timeout_s: Optional[float] = None,
    ) -> List[TokenizedText]:
        """Return what the model reads of each text: tokens, their ids and where they stand.

        Args:
            texts: As for ``embed``.
            text_pairs: As for ``embed``.
            truncate: As for ``embed``.
            is_pretokenized: As for ``embed``.
            timeout_s: As for ``embed``.

        Raises:
            BertronError: As ``embed``.
        """
        options = TextOptions(truncate, is_pretokenized)
        collected = Texts(texts, text_pairs, options)
        call = self._call(timeout_s)
        tokenized: List[TokenizedText] = self._run(
            self._flows.tokenize(collected, options, call), call
        )
        return tokenized

    def is_ready(self, *, timeout_s: Optional[float] = None) -> bool:
        """Whether the server is there and says that the model answers. Never raises for a fault."""
        call = self._call(timeout_s)
        return bool(self._run(self._flows.is_ready(), call))

    def wait_until_ready(self, timeout_s: float) -> None:
        """Return as soon as the model answers.

        Raises:
            DeadlineExceededError: It did not within ``timeout_s``; its cause is the last fault.
        """
        call = self._call(timeout_s)
        self._run(self._flows.wait_until_ready(timeout_s, call), call)

    def server_info(self, *, timeout_s: Optional[float] = None) -> ServerInfo:
        """Ask the server what it is, which model it serves and within which limits.

        Raises:
            BertronError: As ``embed``.
        """
        call = self._call(timeout_s)
        info: ServerInfo = self._run(self._flows.server_info(call), call)
        return info

    def statistics(self, *, timeout_s: Optional[float] = None) -> Dict[str, ModelStatistics]:
        """Ask the server what each of its models has done since it started.

        Raises:
            BertronError: As ``embed``.
        """
        call = self._call(timeout_s)
        statistics: Dict[str, ModelStatistics] = self._run(self._flows.statistics(call), call)
        return statistics

    def close(self) -> None:
        """Drop all connections. Any later call raises RuntimeError."""
        if not self._is_closed:
            call = self._call(CLOSE_TIMEOUT_S)
            self._is_closed = True
            self._run(self._flows.close(), call)
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

    # Doing the steps of flows.

    def _run(self, flow: Flow, call: Call) -> Any:
        """Do the steps of a flow in this thread, and return what it returns."""
        send: Callable[[Any], Step] = flow.send
        value: Any = None
        try:
            while True:
                try:
                    step = send(value)
                except StopIteration as stop:
                    return stop.value
                try:
                    send, value = flow.send, self._do(step, call)
                except BertronError as error:
                    send, value = flow.throw, error
                except StopIteration as error:  # a transport's: here it would mean the flow's end
                    raise RuntimeError("the transport raised StopIteration") from error
        finally:
            flow.close()
            del send, value  # or an error and this frame would hold each other, and all the texts

    def _do(self, step: Step, call: Call) -> Any:
        if isinstance(step, Pause):
            return call.pause(step.seconds)
        if isinstance(step, Together):
            return self._do_together(step, call)
        if isinstance(step, Probe):
            return self._transport.perform(step.operation, call.limited(step.timeout_s))
        return self._transport.perform(step, call)

    def _do_together(self, step: Together, call: Call) -> None:
        """Run all flows, a bounded number at a time; the calling thread does its share."""
        flows = iter(step.flows)
        lock = threading.Lock()
        errors: List[BaseException] = []

        def work() -> None:
            try:
                while not call.is_cancelled:
                    with lock:
                        flow = next(flows, None)
                    if flow is None:
                        return
                    self._run(flow, call)
            except BaseException as error:
                errors.append(error)
                call.cancel()

        # Each in a copy of the caller's context: a trace, say, goes on in all of them.
        threads = [
            threading.Thread(
                target=copy_context().run,
                args=(work,),
                name=f"bertron-request-{number}",
                daemon=True,
            )
            for number in range(1, min(self._max_requests_in_flight, step.count))
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
        try:
            if errors:
                raise errors[0]
        finally:
            errors.clear()  # or the error and this frame would hold each other

    def _stream(
        self,
        texts: Iterator[Any],
        text_pairs: Optional[Iterator[Any]],
        options: TextOptions,
        ordered: bool,
        timeout_s: Optional[float],
    ) -> Iterator[Embedding]:
        call = self._call(timeout_s)
        limits = self._run(self._flows.limits(call), call)
        stream = Stream(
            options,
            ordered=ordered,
            max_requests_in_flight=self._max_requests_in_flight,
            limits=limits,
        )
        calls: Set[Call] = set()
        running: "Dict[Future[Embeddings], Batch]" = {}

        def one(batch: Batch) -> Embeddings:
            call = self._call(timeout_s)
            call.has_siblings = True
            calls.add(call)
            try:
                flow = self._flows.embed_batch(batch, options, limits, call)
                answer: Embeddings = self._run(flow, call)
            finally:
                calls.discard(call)
            return answer

        batches = _windows(stream, texts, text_pairs)
        process_id = os.getpid()
        pool = ThreadPoolExecutor(self._max_requests_in_flight, thread_name_prefix="bertron-stream")
        try:
            while True:
                for batch in islice(batches, stream.requests_wanted(len(running))):
                    running[pool.submit(copy_context().run, one, batch)] = batch
                if not running:
                    return
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    stream.put(running.pop(future), future.result())
                yield from self._given_here(stream.take())
        finally:
            if os.getpid() == process_id:  # a fork has no such threads, its connections are shared
                for future in running:
                    future.cancel()
                for call in list(calls):
                    call.cancel()
                pool.shutdown()

    def _given_here(self, rows: Iterable[Embedding]) -> Iterator[Embedding]:
        """Yield rows, to this process only: in a fork of it nobody would fetch the next."""
        process_id = os.getpid()
        for row in rows:
            yield row
            if os.getpid() != process_id:
                raise RuntimeError(
                    "this process was forked from the one that began the stream; begin another "
                    f"in it ({self._flows.where})"
                )


def _windows(
    stream: Stream, texts: Iterator[Any], text_pairs: Optional[Iterator[Any]]
) -> Iterator[Batch]:
    """Read the texts as far as their batches are taken."""
    while True:
        first = list(islice(texts, stream.window_size))
        second = None if text_pairs is None else list(islice(text_pairs, stream.window_size))
        yield from stream.window(first, second)
        if len(first) < stream.window_size:
            return
