"""A server that is not there, for the tests of programs that use the client.

    transport = MockTransport(embedding_size=8)
    client = Client("http://mock", transport=transport)
    assert client.embed(["a", "b"]).shape == (2, 8)
    assert transport.requests == [["a", "b"]]

Everything above the network is the real client: splitting, order, deadlines, retries, errors.
"""

from __future__ import annotations

import hashlib
import json
import threading
from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy as np
from numpy.typing import NDArray

from ._answers import EMBEDDING, TEXT, TEXT_PAIR, TOKEN_COUNT, TRUNCATED
from ._call import Call
from ._exceptions import InvalidInputError, ModelNotFoundError
from ._wire.operations import (
    Infer,
    ModelConfig,
    ModelMetadata,
    ModelReady,
    ModelStatistics,
    Operation,
    Output,
    ServerMetadata,
)
from ._wire.tensors import bytes_tensor, strings_of

Embed = Callable[[List[str], Optional[List[str]]], Any]
_SPECIAL_TOKENS = 2


def vectors_of(texts: Sequence[str], size: int) -> NDArray[np.float32]:
    """Return a unit vector for each text that depends on the text alone, [B, size]."""
    rows = []
    for text in texts:
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        row = np.random.default_rng(int.from_bytes(digest[:8], "little")).standard_normal(size)
        rows.append(row / np.linalg.norm(row))
    return np.array(rows, np.float32).reshape(len(texts), size)


class MockTransport:
    """Answers in place of a server; for ``Client`` and ``AsyncClient``, from any thread.

    Tokens are words between "[CLS]" and "[SEP]".

    Args:
        embed: Takes the texts of one request and their pairs (or None), and returns [B, E] or
            raises one of the client's errors; None gives ``vectors_of`` the texts.
        embedding_size: E.
        max_batch_size: Texts in a request.
        max_tokens_per_text: More are cut.
        max_characters_per_text: More are refused, by the client itself.
        model: The only one there is.

    Attributes:
        requests: The texts of each request that came, in the order in which they came.
        is_ready: What ``is_ready`` is answered; change it at any time.
    """

    def __init__(
        self,
        embed: Optional[Embed] = None,
        *,
        embedding_size: int = 384,
        max_batch_size: int = 64,
        max_tokens_per_text: int = 256,
        max_characters_per_text: int = 100_000,
        model: str = "text_embedding",
    ) -> None:
        self._embed = embed
        self._embedding_size = embedding_size
        self._max_batch_size = max_batch_size
        self._max_tokens = max_tokens_per_text
        self._max_characters = max_characters_per_text
        self._model = model
        self._lock = threading.Lock()
        self.requests: List[List[str]] = []
        self.is_ready = True

    @property
    def texts(self) -> List[str]:
        """All texts that came, in the order in which they came."""
        return [text for request in self.requests for text in request]

    def perform(self, operation: Operation, call: Call) -> Any:
        """Answer one operation."""
        call.remaining_s()
        if isinstance(operation, ServerMetadata):
            return {"name": "mock", "version": "mock"}
        if isinstance(operation, ModelStatistics):
            return self._statistics()
        model = getattr(operation, "model", None)
        if model not in (self._model, "tokenizer", "bert"):
            raise ModelNotFoundError(f"Request for unknown model: '{model}' ({call.where})")
        if isinstance(operation, Infer):
            texts = _elements(operation, TEXT)
            pairs = _elements(operation, TEXT_PAIR) if len(operation.inputs) > 1 else None
            return self._infer(operation, texts, pairs)
        if isinstance(operation, ModelConfig):
            return self._config()
        if isinstance(operation, ModelReady):
            return self.is_ready
        if isinstance(operation, ModelMetadata):
            return {"name": model, "versions": ["1"]}
        raise NotImplementedError(f"the mock has no {type(operation).__name__}")

    def close(self) -> None:
        """Nothing is open."""

    def forget(self) -> None:
        """Nothing is kept."""

    def _config(self) -> Dict[str, Any]:
        facts = {
            "max_tokens_per_text": str(self._max_tokens),
            "max_characters_per_text": str(self._max_characters),
        }
        return {
            "max_batch_size": self._max_batch_size,
            "output": [{"name": EMBEDDING, "dims": [self._embedding_size]}],
            "parameters": {key: {"string_value": value} for key, value in facts.items()},
            "ensemble_scheduling": {"step": [{"model_name": "tokenizer"}, {"model_name": "bert"}]},
        }

    def _statistics(self) -> Dict[str, Any]:
        with self._lock:
            requests, texts = len(self.requests), sum(map(len, self.requests))
        stats = {"success": {"count": requests, "ns": 0}}
        entry = {"name": self._model, "version": "1", "inference_stats": stats}
        return {"model_stats": [{**entry, "inference_count": texts, "execution_count": requests}]}

    def _infer(
        self, operation: Infer, texts: List[str], pairs: Optional[List[str]]
    ) -> Dict[str, Output]:
        words = [_words(text, operation) for text in texts]
        for row, second in enumerate(pairs or ()):
            words[row] = [*words[row], "[SEP]", *_words(second, operation)]
        kept = self._cut(words, str(operation.parameters.get("truncate", "right")))
        truncated = [len(k) < len(w) for k, w in zip(kept, words)]
        outputs = {TRUNCATED: _output("BOOL", np.array(truncated, bool)[:, np.newaxis])}
        if operation.model == self._model:
            with self._lock:
                self.requests.append(texts)
            counts = np.array([len(k) + _SPECIAL_TOKENS for k in kept], "<i4")[:, np.newaxis]
            outputs[TOKEN_COUNT] = _output("INT32", counts)
            outputs[EMBEDDING] = _output("FP32", self._vectors(texts, pairs))
            return outputs
        return {**outputs, **_token_outputs(texts, kept)}

    def _vectors(self, texts: List[str], pairs: Optional[List[str]]) -> NDArray[np.float32]:
        if self._embed is not None:
            return np.ascontiguousarray(self._embed(texts, pairs), "<f4")
        whole = texts if pairs is None else [f"{a}\0{b}" for a, b in zip(texts, pairs)]
        return vectors_of(whole, self._embedding_size)

    def _cut(self, words: List[List[str]], truncate: str) -> List[List[str]]:
        room = self._max_tokens - _SPECIAL_TOKENS
        for row, found in enumerate(words):
            if truncate == "error" and len(found) > room:
                raise InvalidInputError(
                    f"text {row} has {len(found) + _SPECIAL_TOKENS} tokens, the model takes at "
                    f"most {self._max_tokens}"
                )
        return [found[-room:] if truncate == "left" else found[:room] for found in words]


def _words(text: str, operation: Infer) -> List[str]:
    if operation.parameters.get("is_pretokenized"):
        return [str(token) for token in json.loads(text)]
    return text.split()


def _elements(operation: Infer, name: str) -> List[str]:
    """The strings of one input."""
    (tensor,) = (tensor for tensor in operation.inputs if tensor.name == name)
    return strings_of({name: Output("BYTES", tensor.shape, tensor.data)}, name, tensor.shape)


def _output(datatype: str, array: NDArray[Any]) -> Output:
    return Output(datatype, array.shape, array.tobytes())


def _token_outputs(texts: List[str], words: List[List[str]]) -> Dict[str, Output]:
    """Tokens of each text, padded to the longest; ids are the words' lengths."""
    count, longest = len(texts), max(map(len, words)) + _SPECIAL_TOKENS
    ids = np.zeros((count, longest), "<i4")
    mask = np.zeros((count, longest), "<i4")
    offsets = np.zeros((count, longest, 2), "<i4")
    strings: List[bytes] = []
    for row, found in enumerate(words):
        tokens = ["[CLS]", *found, "[SEP]"]
        mask[row, : len(tokens)] = 1
        ids[row, : len(tokens)] = [len(token) for token in tokens]
        place = 0
        for column, token in enumerate(found, 1):
            place = max(0, texts[row].find(token, place))
            offsets[row, column] = place, place + len(token)
            place += len(token)
        tokens += [""] * (longest - len(tokens))
        strings += [token.encode("utf-8") for token in tokens]
    return {
        "TOKENS": Output("BYTES", (count, longest), bytes_tensor(strings)),
        "OFFSETS": _output("INT32", offsets),
        "input_ids": _output("INT32", ids),
        "token_type_ids": _output("INT32", np.zeros_like(ids)),
        "attention_mask": _output("INT32", mask),
    }
