"""The client for asyncio."""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from types import TracebackType
from typing import (
    Any,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Collection,
    Deque,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    Optional,
    Type,
    Union,
)

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
from ._transports import open_async_transport
from ._transports.base import AsyncTransport, Transport
from ._wire.operations import Operation

AnyIterable = Union[Iterable[Any], AsyncIterable[Any]]


class AsyncClient(BaseClient):
    """Sentence embeddings from a Bertron server, for asyncio; ``Client`` with the same methods.

        async with AsyncClient("grpc://127.0.0.1:8001") as client:
            vectors = numpy.asarray(await client.embed(["a text", "another"]))

    Nothing is sent before the first call. Any number of tasks may share a client, of one event
    loop at a time; under another loop it connects anew. A cancelled call leaves nothing behind.

    Args:
        url: As for ``Client``, and so are all other arguments.

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
        transport: Union[AsyncTransport, Transport, None] = None,
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
            open_transport=open_async_transport,
        )
        self._loop: Optional[asyncio.AbstractEventLoop] = None

    async def embed(
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
        """Return one vector for each text, in order. As ``Client.embed``."""
        options = TextOptions(truncate, is_pretokenized, normalize, dimensions)
        collected = Texts(texts, text_pairs, options)
        call = self._call(timeout_s)
        with progress_of(progress, len(collected)) as on_done:
            embeddings: Embeddings = await self._run(
                self._flows.embed(collected, options, call, on_done), call
            )
        return embeddings

    def embed_iter(
        self,
        texts: AnyIterable,
        *,
        text_pairs: Optional[AnyIterable] = None,
        truncate: str = "right",
        normalize: Optional[bool] = None,
        dimensions: Optional[int] = None,
        is_pretokenized: bool = False,
        ordered: bool = True,
        timeout_s: Optional[float] = None,
    ) -> AsyncIterator[Embedding]:
        """Yield an Embedding for each text. As ``Client.embed_iter``; takes async iterables too.

        An iterator that blocks blocks the event loop; give an async one then. Close the generator
        (``contextlib.aclosing``) where it is left before its end.
        """
        return self._stream(
            _iterated(texts, "texts"),
            None if text_pairs is None else _iterated(text_pairs, "text_pairs"),
            TextOptions(truncate, is_pretokenized, normalize, dimensions),
            ordered,
            timeout_s,
        )

    async def tokenize(
        self,
        texts: Iterable[Any],
        *,
        text_pairs: Optional[Iterable[Any]] = None,
        truncate: str = "right",
        is_pretokenized: bool = False,
        timeout_s: Optional[float] = None,
    ) -> List[TokenizedText]:
        """Return what the model reads of each text. As ``Client.tokenize``."""
        options = TextOptions(truncate, is_pretokenized)
        collected = Texts(texts, text_pairs, options)
        call = self._call(timeout_s)
        tokenized: List[TokenizedText] = await self._run(
            self._flows.tokenize(collected, options, call), call
        )
        return tokenized

    async def is_ready(self, *, timeout_s: Optional[float] = None) -> bool:
        """Whether the server says that the model answers. As ``Client.is_ready``."""
        call = self._call(timeout_s)
        return bool(await self._run(self._flows.is_ready(), call))

    async def wait_until_ready(self, timeout_s: float) -> None:
        """Return as soon as the model answers. As ``Client.wait_until_ready``."""
        call = self._call(timeout_s)
        await self._run(self._flows.wait_until_ready(timeout_s, call), call)

    async def server_info(self, *, timeout_s: Optional[float] = None) -> ServerInfo:
        """Ask the server what it serves. As ``Client.server_info``."""
        call = self._call(timeout_s)
        info: ServerInfo = await self._run(self._flows.server_info(call), call)
        return info

    async def statistics(self, *, timeout_s: Optional[float] = None) -> Dict[str, ModelStatistics]:
        """Ask the server what its models have done. As ``Client.statistics``."""
        call = self._call(timeout_s)
        statistics: Dict[str, ModelStatistics] = await self._run(self._flows.statistics(call), call)
        return statistics

    async def close(self) -> None:
        """Drop all connections. Any later call raises RuntimeError."""
        if not self._is_closed:
            call = self._call(CLOSE_TIMEOUT_S)
            self._is_closed = True
            await self._run(self._flows.close(), call)
        await _awaited(self._transport.close())

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        await self.close()

    def _call(self, timeout_s: Optional[float]) -> Call:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # what is open belongs to one that has ended
            if self._loop is not None:
                self._transport.forget()
            self._loop = loop
        return super()._call(timeout_s)

    # Doing the steps of flows.

    async def _run(self, flow: Flow, call: Call) -> Any:
        """Do the steps of a flow in this task, and return what it returns."""
        send: Callable[[Any], Step] = flow.send
        value: Any = None
        try:
            while True:
                try:
                    step = send(value)
                except StopIteration as stop:
                    return stop.value
                try:
                    send, value = flow.send, await self._do(step, call)
                except BertronError as error:
                    send, value = flow.throw, error
        finally:
            flow.close()
            del send, value  # or an error and this frame would hold each other, and all the texts

    async def _do(self, step: Step, call: Call) -> Any:
        if isinstance(step, Pause):
            return await asyncio.sleep(min(step.seconds, call.remaining_s()))
        if isinstance(step, Together):
            return await self._do_together(step, call)
        if isinstance(step, Probe):
            return await self._perform(step.operation, call.limited(step.timeout_s))
        return await self._perform(step, call)

    async def _perform(self, operation: Operation, call: Call) -> Any:
        return await _awaited(self._transport.perform(operation, call))

    async def _do_together(self, step: Together, call: Call) -> None:
        """Run all flows, a bounded number at a time."""
        flows = iter(step.flows)

        async def work() -> None:
            for flow in flows:
                await self._run(flow, call)

        workers = min(self._max_requests_in_flight, step.count)
        await _all_or_none([asyncio.ensure_future(work()) for _ in range(workers)])

    async def _stream(
        self,
        texts: AsyncIterator[Any],
        text_pairs: Optional[AsyncIterator[Any]],
        options: TextOptions,
        ordered: bool,
        timeout_s: Optional[float],
    ) -> AsyncIterator[Embedding]:
        call = self._call(timeout_s)
        limits = await self._run(self._flows.limits(call), call)
        stream = Stream(
            options,
            ordered=ordered,
            max_requests_in_flight=self._max_requests_in_flight,
            limits=limits,
        )
        slots = asyncio.Semaphore(self._max_requests_in_flight)
        running: "Dict[asyncio.Future[Embeddings], Batch]" = {}

        async def one(batch: Batch) -> Embeddings:
            async with slots:
                call = self._call(timeout_s)
                flow = self._flows.embed_batch(batch, options, limits, call)
                answer: Embeddings = await self._run(flow, call)
            return answer

        batches = _Batches(stream, texts, text_pairs)
        try:
            while True:
                for _ in range(stream.requests_wanted(len(running))):
                    batch = await batches.next()
                    if batch is None:
                        break
                    running[asyncio.ensure_future(one(batch))] = batch
                if not running:
                    return
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for future in done:
                    stream.put(running[future], future.result())
                    del running[future]
                for embedding in stream.take():
                    yield embedding
        finally:
            await _cancelled(running)


async def _awaited(result: Any) -> Any:
    """What a transport gives; a blocking one, such as a test double, has nothing to await."""
    return await result if inspect.isawaitable(result) else result


async def _all_or_none(tasks: "List[asyncio.Future[None]]") -> None:
    """Wait for all; the first that fails, or the caller's end, cancels the others."""
    try:
        await asyncio.gather(*tasks)
    finally:
        await _cancelled(tasks)
        tasks.clear()  # or an error and this frame would hold each other


async def _cancelled(tasks: "Collection[asyncio.Future[Any]]") -> None:
    """Cancel what still runs, and wait until it has ended; whatever failed has been seen."""
    unfinished = [task for task in tasks if not task.done()]
    for task in unfinished:
        task.cancel()
    if unfinished:
        await asyncio.wait(unfinished)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # or asyncio would log that nobody asked


class _Batches:
    """The texts of a stream as batches, read as far as they are taken.

    No async generator: one that is left before its end needs an event loop to be closed by.
    """

    def __init__(
        self, stream: Stream, texts: AsyncIterator[Any], text_pairs: Optional[AsyncIterator[Any]]
    ) -> None:
        self._stream = stream
        self._texts = texts
        self._text_pairs = text_pairs
        self._ready: Deque[Batch] = deque()
        self._has_ended = False

    async def next(self) -> Optional[Batch]:
        """Return the next batch, or None behind the last."""
        while not self._ready and not self._has_ended:
            size = self._stream.window_size
            first = await _take(self._texts, size)
            second = None if self._text_pairs is None else await _take(self._text_pairs, size)
            self._has_ended = len(first) < size
            self._ready.extend(self._stream.window(first, second))
        return self._ready.popleft() if self._ready else None


async def _take(iterator: AsyncIterator[Any], count: int) -> List[Any]:
    taken: List[Any] = []
    while len(taken) < count:
        try:
            taken.append(await iterator.__anext__())
        except StopAsyncIteration:
            break
    return taken


def _iterated(texts: AnyIterable, name: str) -> AsyncIterator[Any]:
    """Return an async iterator over texts of either kind."""
    if isinstance(texts, AsyncIterable):
        return texts.__aiter__()
    return _AsAsync(iterate_texts(texts, name))


class _AsAsync:
    """An ordinary iterator, asked asynchronously."""

    def __init__(self, texts: Iterator[Any]) -> None:
        self._texts = texts

    def __aiter__(self) -> _AsAsync:
        return self

    async def __anext__(self) -> Any:
        for text in self._texts:
            return text
        raise StopAsyncIteration
