"""The ways to ask a server: through the SDK, by KServe clients without it, and a peer's own."""

import http.client
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from bertron_client import (
    Client,
    DeadlineExceededError,
    OverloadedError,
    RetryPolicy,
    ServerUnavailableError,
)
from numpy.typing import NDArray

from bertron_loadtest.answers import WrongAnswerError
from bertron_loadtest.samples import Outcome

# Triton server's words, which tell a full or late queue from a server that is not there.
_OVERLOADED = ("exceeds maximum queue size", "request timeout expired", "overloaded")
_OUTPUTS = ("EMBEDDING", "TOKEN_COUNT", "TRUNCATED")  # what the SDK asks for too
_MOST_RAW_CONNECTIONS = 256


@dataclass(frozen=True)
class Answer:
    """What came back: vectors [B, E], and how many tokens the server says it read (0: no word)."""

    vectors: NDArray[np.float32]
    tokens: int


class RefusedError(Exception):
    """The server said that it has too much to do."""


class Caller(ABC):
    """One client; safe for several calls at a time."""

    @abstractmethod
    def embed(self, texts: Sequence[str]) -> Answer:
        """Ask once; nothing is tried again."""

    @abstractmethod
    def close(self) -> None:
        """Drop its connections."""


class SdkCaller(Caller):
    """``bertron_client``, over the protocol that the url names."""

    def __init__(self, url: str, model: str, timeout_s: float) -> None:
        never = RetryPolicy(max_retries=0)  # a retry would hide what is counted here
        self._client = Client(url, model=model, timeout_s=timeout_s, retry=never)

    def embed(self, texts: Sequence[str]) -> Answer:  # noqa: D102 - the base class says it
        answer = self._client.embed(texts)
        return Answer(np.asarray(answer), int(answer.token_counts.sum()))

    def close(self) -> None:  # noqa: D102
        self._client.close()


class RawCaller(Caller):
    """tritonclient as its documents show it: what the SDK costs is the difference.

    A call of more texts than the server takes is sent in pieces, one after the other.
    """

    def __init__(self, url: str, model: str, timeout_s: float) -> None:
        self._model = model
        self._timeout_s = timeout_s
        parts = urlsplit(url)
        if parts.scheme == "grpc":
            import tritonclient.grpc as module

            self._client = module.InferenceServerClient(parts.netloc)
            config = self._client.get_model_config(model, as_json=True, client_timeout=timeout_s)
            config = config["config"]
            self._arguments: dict[str, Any] = {"client_timeout": timeout_s}
        else:
            import tritonclient.http as module

            self._client = module.InferenceServerClient(
                parts.netloc,
                concurrency=_MOST_RAW_CONNECTIONS,
                connection_timeout=timeout_s,
                network_timeout=timeout_s,
            )
            config = self._client.get_model_config(model)
            self._arguments = {}
        self._most_texts = int(config["max_batch_size"])
        self._module = module

    def embed(self, texts: Sequence[str]) -> Answer:  # noqa: D102
        size = self._most_texts
        answers = [self._embed(texts[at : at + size]) for at in range(0, len(texts), size)]
        vectors = np.concatenate([answer.vectors for answer in answers])
        return Answer(vectors, sum(answer.tokens for answer in answers))

    def _embed(self, texts: Sequence[str]) -> Answer:
        tensor = self._module.InferInput("TEXT", [len(texts), 1], "BYTES")
        tensor.set_data_from_numpy(np.array(texts, dtype=object)[:, None])
        outputs = [self._module.InferRequestedOutput(name) for name in _OUTPUTS]
        result = self._client.infer(self._model, [tensor], outputs=outputs, **self._arguments)
        return Answer(result.as_numpy("EMBEDDING"), int(result.as_numpy("TOKEN_COUNT").sum()))

    def close(self) -> None:  # noqa: D102
        self._client.close()


class InfinityCaller(Caller):
    """infinity-emb's OpenAI-like endpoint, with vectors as base64: its quickest form."""

    def __init__(self, url: str, _model: str, timeout_s: float) -> None:
        self._place = urlsplit(url).netloc
        self._timeout_s = timeout_s
        self._idle: list[http.client.HTTPConnection] = []

    def embed(self, texts: Sequence[str]) -> Answer:  # noqa: D102
        from bertron_loadtest.infinity import embeddings_request, read_embeddings_answer

        connection = (
            self._idle.pop()
            if self._idle
            else http.client.HTTPConnection(self._place, timeout=self._timeout_s)
        )
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/embeddings", embeddings_request(texts), headers)
            response = connection.getresponse()
            body = response.read()
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)
        if response.status in (429, 503):
            raise RefusedError(f"HTTP {response.status}")
        if response.status != 200:
            raise ValueError(f"HTTP {response.status}: {_shortened(body)}")
        try:
            return Answer(read_embeddings_answer(body), 0)
        except ValueError as error:
            raise WrongAnswerError(str(error)) from error

    def close(self) -> None:  # noqa: D102
        while self._idle:
            self._idle.pop().close()


@dataclass(frozen=True)
class CallerKind:
    """A way to ask: the url's scheme that it needs, its class, and its Locust user's name."""

    scheme: str
    make: type[Any]
    user: str


CALLERS = {
    "grpc": CallerKind("grpc", SdkCaller, "GrpcUser"),
    "http": CallerKind("http", SdkCaller, "HttpUser"),
    "raw-grpc": CallerKind("grpc", RawCaller, "RawGrpcUser"),
    "raw-http": CallerKind("http", RawCaller, "RawHttpUser"),
    "infinity": CallerKind("http", InfinityCaller, "InfinityUser"),
}


def open_caller(name: str, urls: dict[str, str], model: str, timeout_s: float) -> Caller:
    """Return a caller of one kind.

    Args:
        name: Of ``CALLERS``.
        urls: By scheme: ``grpc``, ``http``.
        model: Name of the served model.
        timeout_s: Of each call.
    """
    kind = CALLERS[name]
    caller: Caller = kind.make(urls[kind.scheme], model, timeout_s)
    return caller


def outcome_of(error: BaseException) -> Outcome:
    """Return what kind of end an exception out of a call is."""
    if isinstance(error, WrongAnswerError):
        return Outcome.WRONG
    if isinstance(error, (OverloadedError, RefusedError)):
        return Outcome.REFUSED
    if isinstance(error, (DeadlineExceededError, TimeoutError)):
        return Outcome.TIMED_OUT
    if isinstance(error, (ServerUnavailableError, ConnectionError, http.client.HTTPException)):
        return Outcome.DISCONNECTED
    if type(error).__name__ == "InferenceServerException":
        return _raw_outcome(str(error.status() or ""), str(error))  # type: ignore[attr-defined]
    return Outcome.FAILED


def _raw_outcome(status: str, message: str) -> Outcome:
    words = message.lower()
    if status in ("429", "StatusCode.RESOURCE_EXHAUSTED"):
        return Outcome.REFUSED
    if status in ("503", "StatusCode.UNAVAILABLE"):
        is_overload = any(part in words for part in _OVERLOADED)
        return Outcome.REFUSED if is_overload else Outcome.DISCONNECTED
    if status in ("499", "StatusCode.DEADLINE_EXCEEDED") or "timed out" in words:
        return Outcome.TIMED_OUT
    return Outcome.FAILED


def _shortened(body: bytes) -> str:
    try:
        return str(json.loads(body).get("error", ""))[:200]
    except (ValueError, AttributeError):
        return body[:200].decode("utf-8", "replace")
