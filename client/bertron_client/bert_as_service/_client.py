"""BertClient, as in bert-as-service 1.10."""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import sys
import threading
import time
import uuid
import warnings
from types import TracebackType
from typing import Any, Dict, Generator, Iterable, Iterator, List, NamedTuple, Optional, Tuple, Type

import numpy as np

from .._client import Client
from .._transports.base import parse_url
from ._answer import Answer, ask
from ._deadline import DEFAULT_TIMEOUT_MS, Deadline, seconds
from ._mailbox import Mailbox, Sender
from ._server_status import server_config, statistic
from ._stream import stream
from ._texts import Batch, read_batch

OUTPUT_FORMATS = ("ndarray", "list")
PROTOCOLS = ("grpc", "http")
# Non-blocking batches at the server at a time; each is several requests of the client's.
MAX_SENDERS = 4
# Batches that `encode_async` has read and that are not fetched: as many again as are at the
# server, so that it does not wait for the consumer, and memory stays bounded.
MAX_UNFETCHED = 2 * MAX_SENDERS


class Response(NamedTuple):
    """The answer to a non-blocking request; ``id`` counts the client's requests from 1."""

    id: int
    embedding: Any  # [B, E] float32, or the same as lists
    tokens: Any  # a list of tokens for each text, "" where none were asked for


class BertClient:
    """The interface of bert-as-service's client, over :class:`bertron_client.Client`.

    Safe to share between threads. Nothing is sent before the first call, except for
    ``show_server_config``.

    Args:
        ip: Host of the server.
        port: None takes 8001, or 8000 where ``protocol`` is "http".
        port_out: Ignored; answers come back on the connection that asked.
        output_fmt: "ndarray" or "list".
        show_server_config: Ask the server now, and print what it says.
        identity: Shown in ``status``. Answers go to whoever asked, never to all of one identity.
        check_version: Ignored; any server that speaks the protocol will do.
        check_length: Warn of texts that were cut, as the server counted their tokens.
        check_token_info: Ignored; tokens can always be asked for.
        ignore_all_checks: The same as ``check_length=False``.
        timeout: Milliseconds for each call as a whole. -1 is a day, the longest there is.
        protocol: "grpc" or "http".
        model: Name of the ensemble.
        url: In place of ``ip``, ``port`` and ``protocol``; "grpcs://host" for TLS.
        client_options: Further arguments of :class:`bertron_client.Client`.

    Raises:
        AttributeError: Another ``output_fmt``.
        TypeError: An argument of a type that cannot be meant.
        ValueError: An argument that no server could make right.
    """

    def __init__(
        self,
        ip: str = "localhost",
        port: Optional[int] = None,
        port_out: int = 5556,
        output_fmt: str = "ndarray",
        show_server_config: bool = False,
        identity: Optional[str] = None,
        check_version: bool = True,  # noqa: ARG002
        check_length: bool = True,
        check_token_info: bool = True,  # noqa: ARG002
        ignore_all_checks: bool = False,
        timeout: float = DEFAULT_TIMEOUT_MS,
        *,
        protocol: str = "grpc",
        model: str = "text_embedding",
        url: Optional[str] = None,
        **client_options: Any,
    ) -> None:
        if output_fmt not in OUTPUT_FORMATS:
            raise AttributeError(
                f"output_fmt is {output_fmt!r}, one of {', '.join(OUTPUT_FORMATS)} is wanted"
            )
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol is {protocol!r}, one of {', '.join(PROTOCOLS)} is wanted")
        if url is None:
            host = f"[{ip}]" if ":" in ip else ip
            url = f"{protocol}://{host}" + ("" if port is None else f":{port}")
        if identity is not None:
            warnings.warn(
                "identity does not share answers here: they go to the client that asked, and to "
                "no other of the same identity",
                stacklevel=2,
            )
        self._timeout_s = seconds(timeout)
        self._client = Client(url, model=model, timeout_s=self._timeout_s, **client_options)
        self.identity = str(uuid.uuid4()) if identity is None else identity
        address = parse_url(url)
        self.ip, self.port = address.host, address.port
        self.port_out = port_out
        self.output_fmt = output_fmt
        self.timeout = timeout
        self._model = model
        self._warns_of_cut = check_length and not ignore_all_checks
        self._lock = threading.Lock()
        self._num_request = 0
        self._sender = Sender(MAX_SENDERS)
        self._mailbox: Mailbox[Tuple[int, Answer]] = Mailbox(self._sender)
        if show_server_config:
            try:
                _show(self.server_config)
            except BaseException:
                self.close()
                raise

    def encode(
        self,
        texts: List[Any],
        blocking: bool = True,
        is_tokenized: bool = False,
        show_tokens: bool = False,
        *,
        timeout: Optional[float] = None,
    ) -> Any:
        """Return one vector for each text, in order.

        ``"first ||| second"`` is a pair of texts, and so are tokens with "|||" among them.

        Args:
            texts: A list of str; a list of lists of tokens when ``is_tokenized``, which the
                vocabulary looks up as they stand.
            blocking: False sends and returns None at once; ``fetch`` or ``fetch_all`` return the
                answer.
            is_tokenized: See ``texts``.
            show_tokens: Also return what the model read of each text, special tokens included.
            timeout: Milliseconds for this call; None takes the client's.

        Returns:
            [B, E] float32, or the same as lists; with ``show_tokens`` a tuple of that and a list
            of tokens for each text.

        Raises:
            TypeError: ``texts`` is not a list, or one of them not a str.
            ValueError: ``texts`` is empty, or one of them blank; ``.index`` says which.
            BertronError: As :meth:`bertron_client.Client.embed`.
        """
        batch = read_batch(texts, is_tokenized=is_tokenized)
        deadline = self._deadline(timeout)
        if not blocking:
            self._send(self._mailbox, batch, show_tokens, deadline)
            return None
        self._new_request()
        answer = self._ask(batch, show_tokens, deadline)
        self._warn_of_cut(answer, stacklevel=3)
        vectors = self._formatted(answer)
        return (vectors, answer.tokens) if show_tokens else vectors

    def fetch(self, delay: float = 0.0) -> Iterator[Response]:
        """Yield the answers to ``encode(..., blocking=False)`` as they arrive, each once.

        Ends when no request is pending. Each request has its own time limit, which began when it
        was sent. A request that failed raises its error here and is over; fetch again for the rest.

        Args:
            delay: Seconds to wait first.
        """
        return self._responses(self._arrivals(delay))

    def fetch_all(self, sort: bool = True, concat: bool = False) -> Any:
        """Return the answers to all that is pending; an empty list when nothing is.

        All or nothing: the first error is raised, and what else was pending is dropped.

        Args:
            sort: In the order of sending, else in that of arrival.
            concat: As one array, or one list, in place of one for each request.
        """
        try:
            responses = list(self._responses(self._arrivals(0.0), stacklevel=4))
        except BaseException:
            self._mailbox.give_up()
            raise
        if sort:
            responses.sort(key=lambda response: response.id)
        embeddings = [response.embedding for response in responses]
        if not concat or not embeddings:
            return embeddings
        if self.output_fmt == "list":
            return [row for rows in embeddings for row in rows]
        return np.concatenate(embeddings)

    def encode_async(
        self,
        batch_generator: Iterable[List[Any]],
        max_num_batch: Optional[int] = None,
        delay: float = 0.1,  # noqa: ARG002
        *,
        is_tokenized: bool = False,
        show_tokens: bool = False,
        timeout: Optional[float] = None,
    ) -> Iterator[Response]:
        """Yield the answers to the batches of a generator, as they arrive.

        The generator is read in a thread of its own, from the first ``next`` on and at most
        ``MAX_UNFETCHED`` batches ahead of the consumer: it may be endless. Only its own batches are
        yielded. The first error ends it: a batch's when it arrives, the generator's behind the
        answers to what it gave before.

        Args:
            batch_generator: Lists of texts, as ``encode`` takes them.
            max_num_batch: Read no more than this many; None or 0 reads all.
            delay: Ignored; it ends when all batches are answered, not when none is pending.
            is_tokenized: As in ``encode``, as are the next two.
            show_tokens: See ``is_tokenized``.
            timeout: See ``is_tokenized``.
        """
        if max_num_batch is not None and max_num_batch < 0:
            raise ValueError(f"max_num_batch is {max_num_batch}, it must be at least 0")
        self._deadline(timeout)  # refused here, not at the first `next`
        mailbox: Mailbox[Tuple[int, Answer]] = Mailbox(self._sender, is_open=True)

        def send(texts: List[Any]) -> None:
            batch = read_batch(texts, is_tokenized=is_tokenized)
            self._send(mailbox, batch, show_tokens, self._deadline(timeout))

        batches = itertools.islice(batch_generator, max_num_batch or None)
        return self._responses(stream(batches, mailbox, send, max_unfetched=MAX_UNFETCHED))

    @property
    def server_config(self) -> Dict[str, Any]:
        """What the server says of itself, by 1.10's names where they mean something here."""
        return server_config(self._client.server_info())

    @property
    def server_status(self) -> Dict[str, Any]:
        """``server_config``, and under ``statistic`` what the model has done since its load."""
        counted = statistic(self._client.statistics(), self._model)
        return {**self.server_config, "statistic": counted}

    @property
    def status(self) -> Dict[str, Any]:
        """This client's own state."""
        pending = self._mailbox.pending()
        return {
            "identity": self.identity,
            "num_request": self._num_request,
            "num_pending_request": len(pending),
            "pending_request": pending,
            "output_fmt": self.output_fmt,
            "port": self.port,
            "port_out": self.port_out,
            "server_ip": self.ip,
            "client_version": _version(),
            "timeout": self.timeout,
        }

    def close(self) -> None:
        """Drop all connections, and what is pending. Any later call raises RuntimeError."""
        self._sender.close()
        self._mailbox.give_up()
        self._client.close()

    def __enter__(self) -> BertClient:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def _deadline(self, timeout_ms: Optional[float]) -> Deadline:
        return Deadline.after(self._timeout_s if timeout_ms is None else seconds(timeout_ms))

    def _new_request(self) -> int:
        with self._lock:
            self._num_request += 1
            return self._num_request

    def _ask(self, batch: Batch, show_tokens: bool, deadline: Deadline) -> Answer:
        return ask(self._client, batch, show_tokens=show_tokens, deadline=deadline)

    def _send(
        self,
        mailbox: Mailbox[Tuple[int, Answer]],
        batch: Batch,
        show_tokens: bool,
        deadline: Deadline,
    ) -> None:
        number = self._new_request()
        mailbox.send(number, lambda: (number, self._ask(batch, show_tokens, deadline)), deadline)

    def _arrivals(self, delay: float) -> Generator[Tuple[int, Answer], None, None]:
        time.sleep(delay)
        yield from iter(self._mailbox.next, None)

    def _responses(
        self, answers: Generator[Tuple[int, Answer], None, None], *, stacklevel: int = 3
    ) -> Iterator[Response]:
        with contextlib.closing(answers):
            for number, answer in answers:
                self._warn_of_cut(answer, stacklevel=stacklevel)
                tokens = "" if answer.tokens is None else answer.tokens
                yield Response(number, self._formatted(answer), tokens)

    def _formatted(self, answer: Answer) -> Any:
        return answer.vectors.tolist() if self.output_fmt == "list" else answer.vectors

    def _warn_of_cut(self, answer: Answer, *, stacklevel: int) -> None:
        if self._warns_of_cut and answer.cut:
            warnings.warn(
                f"{len(answer.cut)} of {len(answer.vectors)} texts are longer than the model reads "
                f"and were cut at the end; the first is text {answer.cut[0]}",
                stacklevel=stacklevel,
            )


def _version() -> str:
    try:
        return importlib.metadata.version("bertron")
    except importlib.metadata.PackageNotFoundError:  # a copied folder, not an installation
        return "unknown"


def _show(config: Dict[str, Any]) -> None:
    width = max(map(len, config))
    lines = [f"{name:>{width}} = {value}" for name, value in config.items()]
    sys.stdout.write("\n".join(["server config:", *lines, ""]))
