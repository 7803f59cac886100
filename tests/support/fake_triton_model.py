"""What the fake server computes, and how it can be told to go wrong: the same over both protocols.

Vectors and tokens are functions of the text alone, so a test can tell whose row it got.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import re
import struct
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Union

import numpy as np

EMBEDDING_SIZE = 16
MAX_TOKENS = 12
MAX_CHARACTERS = 1000
MAX_REQUEST_CHARACTERS = 6000
VERSION = "2.51.0-fake"
MODEL = "text_embedding"
STEPS = ("tokenizer", "bert")  # of the ensemble
# What the statistics say each request took.
QUEUE_NS = 1_000_000
COMPUTE_NS = {"compute_input": 250_000, "compute_infer": 2_000_000, "compute_output": 250_000}


def vector_of(text: str, pair: str | None = None) -> np.ndarray:
    """The unit vector [E] that the server answers for a text, tokens joined by blanks included."""
    seed = hashlib.sha256(repr((text, pair)).encode("utf-8")).digest()[:8]
    vector = np.random.default_rng(int.from_bytes(seed, "little")).standard_normal(EMBEDDING_SIZE)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def vectors_of(texts: list[str], pairs: list[str] | None = None) -> np.ndarray:
    """The rows [B, E] that the server answers for texts."""
    rows = [vector_of(*row) for row in zip(texts, pairs or [None] * len(texts))]
    return np.array(rows, np.float32).reshape(len(texts), EMBEDDING_SIZE)


def tokens_of(text: str, pair: str | None = None) -> int:
    """Words and two special tokens; three for a pair."""
    return len(text.split()) + 2 + (0 if pair is None else len(pair.split()) + 1)


def id_of(token: str) -> int:
    """The vocabulary's number for a token."""
    return {"[CLS]": 101, "[SEP]": 102}.get(token, 1000 + zlib.crc32(token.encode()) % 29000)


@dataclass
class Tokens:
    """One text as tokens; offsets are characters in the text that the token is from."""

    tokens: list[str]
    offsets: list[tuple[int, int]]
    type_ids: list[int]
    untruncated_count: int

    @property
    def is_truncated(self) -> bool:
        return len(self.tokens) < self.untruncated_count


Word = tuple[str, int, int]  # text, start and end in characters
Text = Union[str, list[str]]  # a text, or its tokens where it came with is_pretokenized


def _words(text: Text) -> list[Word]:
    if isinstance(text, list):
        return [(token, 0, len(token)) for token in text]
    return [(match.group(), *match.span()) for match in re.finditer(r"\S+", text)]


def tokenize(text: Text, pair: Text | None = None, truncate: str = "right") -> Tokens:
    """Words between [CLS] and [SEP], cut at the ``truncate`` end of the longer text."""
    parts = [_words(part) for part in (text, pair) if part is not None]
    specials = 1 + len(parts)
    count = specials + sum(map(len, parts))
    for _ in range(count - MAX_TOKENS):
        max(parts, key=len).pop(0 if truncate == "left" else -1)
    found = Tokens(["[CLS]"], [(0, 0)], [0], count)
    for type_id, words in enumerate(parts):
        for token, start, end in [*words, ("[SEP]", 0, 0)]:
            found.tokens.append(token)
            found.offsets.append((start, end))
            found.type_ids.append(type_id)
    return found


class RefusalError(Exception):
    """An error answer: HTTP status and text."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


REFUSALS = {
    "busy": (503, "in ensemble 'text_embedding', Exceeds maximum queue size"),
    "expired": (503, "in ensemble 'text_embedding', Request timeout expired"),
    "full": (503, "in ensemble 'text_embedding', the server is overloaded: 9 tokens wait"),
    "stopping": (503, "Server is stopping, scheduler for model has stopped accepting requests"),
    "too_many": (429, "too many requests"),  # a proxy's; Triton server has no such answer
    "bad_gateway": (502, "no healthy upstream"),  # a proxy's
    "internal": (500, "in ensemble 'text_embedding', the forward failed"),
    "invalid": (400, "in ensemble 'text_embedding', text 0 is not to my liking"),
    "vague": (400, "in ensemble 'text_embedding', something is not right"),
    "forbidden": (403, "not for you"),
}


MODEL_FAULTS = (
    *("never", "late", "nan", "mixed_up", "wrong_count", "too_many_rows", "wrong_dtype"),
    *("short_data", "missing_output", "huge"),
)


@dataclass
class Arrival:
    """A request of any kind."""

    what: str  # "infer", "config", "ready", "metadata", "statistics", "shared-memory", ...
    model: str | None
    headers: dict[str, str]  # HTTP's headers or gRPC's metadata, names in lower case


@dataclass
class Request:
    """An inference request."""

    texts: list[str]
    pairs: list[str] | None
    parameters: dict[str, object]
    model: str = MODEL
    outputs: list[str] = field(default_factory=list)  # requested; none: all
    headers: dict[str, str] = field(default_factory=dict)
    fault: str | None = None  # what the server was told to do with it

    @property
    def is_pretokenized(self) -> bool:
        return self.parameters.get("is_pretokenized") in (True, "true")

    def contents(self) -> list[tuple[Text, Text | None]]:
        """Text and pair of each row."""
        pairs = self.pairs or [None] * len(self.texts)
        rows = list(zip(self.texts, pairs))
        return [tuple(map(_token_list, row)) for row in rows] if self.is_pretokenized else rows


def _token_list(text: str | None) -> list[str] | None:
    if text is None:
        return None
    with contextlib.suppress(ValueError):
        tokens = json.loads(text)
        if isinstance(tokens, list) and all(isinstance(token, str) for token in tokens):
            return tokens
    raise RefusalError(400, f"{text!r} is not a JSON array of strings")


@dataclass
class Output:
    """One tensor of an answer."""

    name: str
    datatype: str
    shape: list[int]
    data: bytes


@dataclass
class _Tally:
    """What one model has done."""

    succeeded: int = 0
    failed: int = 0
    batch_sizes: Counter[int] = field(default_factory=Counter)


@dataclass
class Behaviour:
    """What the server does with the next inference requests; change it at any time."""

    delay_s: float = 0.0
    random_delay_s: float = 0.0  # at most so much more, as `dice` fall
    dice: random.Random = field(default_factory=lambda: random.Random(0))
    # A key of REFUSALS, one of MODEL_FAULTS, or in HTTP one of fake_triton_http_faults.FAULTS.
    fault: str | None = None
    fail_first: int | None = None  # the fault strikes so many requests more; None: all
    fault_share: float = 1.0  # of requests, as `dice` fall
    fault_strikes: tuple[str, ...] = ("infer",)  # other kinds of Arrival take REFUSALS only
    only_texts_with: str = ""  # the fault strikes requests with such a text
    late_s: float = 0.5  # how long "late" withholds a right answer
    retry_after_s: float | str | None = None  # said with status 429 and 503; a str as it stands
    required_token: str | None = None
    restricted: set[str] = field(default_factory=set)  # kinds of Arrival that ask for an admin-key
    close_after_answer: bool = False  # HTTP: close the connection without having said so
    http_manner: str | None = None  # HTTP: a way to answer that is right; see MANNERS there
    compresses: bool = True  # HTTP: answers clients that accept gzip
    max_batch_size: int = 8
    embedding_size: int = EMBEDDING_SIZE
    is_ready: bool = True
    edit_config: Callable[[dict], object] | None = None  # last hand on each configuration sent
    numbers_as_strings: bool = False  # HTTP: integers of statistics as protobuf's JSON writes them

    arrivals: list[Arrival] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    connections_accepted: int = 0  # HTTP
    connections_open: int = 0  # HTTP
    regions: dict[str, object] = field(default_factory=dict)  # shared memory, by name
    tallies: dict[str, _Tally] = field(
        default_factory=lambda: {name: _Tally() for name in (MODEL, *STEPS)}
    )
    lock: threading.Lock = field(default_factory=threading.Lock)
    released: threading.Event = field(default_factory=threading.Event)  # ends "never"
    stopped: threading.Event = field(default_factory=threading.Event)  # ends every wait

    def __setattr__(self, name: str, value: object) -> None:
        if name == "fault" and value is not None:
            from fake_triton_http_faults import FAULTS  # which imports this module

            assert value in (*REFUSALS, *MODEL_FAULTS, *FAULTS), f"no fault is called {value!r}"
        super().__setattr__(name, value)

    @property
    def config_requests(self) -> int:
        return self.count("config", MODEL)

    def count(self, what: str, model: str | None = None) -> int:
        """How many requests of a kind came, of one model or of any."""
        return sum(a.what == what and model in (None, a.model) for a in self.arrivals)

    def admit(self, what: str, model: str | None, headers: dict[str, str]) -> None:
        """Write an arrival down, and refuse who may not or what is not there."""
        self.arrivals.append(Arrival(what, model, headers))
        authorization = headers.get("authorization")
        if self.required_token is not None and authorization != f"Bearer {self.required_token}":
            raise RefusalError(401, "a bearer token is wanted")
        if what in self.restricted and not any(key.endswith("admin-key") for key in headers):
            raise RefusalError(403, "This API is restricted, expecting header 'admin-key'")
        if model is not None and model not in self.tallies:
            raise RefusalError(404, f"Request for unknown model: '{model}' is not found")
        is_faulty = what != "infer" and what in self.fault_strikes and self.fault in REFUSALS
        if is_faulty and self._is_struck():
            raise RefusalError(*REFUSALS[self.fault])

    @contextlib.contextmanager
    def taking(self, request: Request) -> Iterator[None]:
        """Count a request in flight, and decide what becomes of it."""
        with self.lock:
            self.requests.append(request)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            delay_s = self.delay_s + self.dice.uniform(0, self.random_delay_s)
        matches = any(self.only_texts_with in text for text in request.texts)
        if "infer" in self.fault_strikes and matches and self._is_struck():
            request.fault = self.fault
        try:
            self.stopped.wait(delay_s)
            if request.fault == "never":
                self.released.wait(60)
            if request.fault == "late":
                self.stopped.wait(self.late_s)
            yield
        finally:
            with self.lock:
                self.in_flight -= 1

    def _is_struck(self) -> bool:
        with self.lock:
            if self.fault is None or self.fail_first == 0:
                return False
            if self.fault_share < 1 and self.dice.random() >= self.fault_share:
                return False
            if self.fail_first is not None:
                self.fail_first -= 1
            return True

    def release(self) -> None:
        """End all waits, for good."""
        self.stopped.set()
        self.released.set()


def answer(request: Request, behaviour: Behaviour) -> list[Output]:
    """The outputs asked for, and a mark in the statistics."""
    tally = behaviour.tallies[request.model]
    try:
        outputs = _compute(request, behaviour)
        if request.outputs:
            by_name = {output.name: output for output in outputs}
            for name in request.outputs:
                if name not in by_name:
                    wrong = f"unexpected inference output '{name}' for model '{request.model}'"
                    raise RefusalError(400, wrong)
            outputs = [by_name[name] for name in request.outputs]
    except RefusalError:
        with behaviour.lock:
            tally.failed += 1
        raise
    with behaviour.lock:
        for model in (MODEL, *STEPS) if request.model == MODEL else (request.model,):
            behaviour.tallies[model].succeeded += 1
            behaviour.tallies[model].batch_sizes[len(request.texts)] += 1
    return outputs[:1] if request.fault == "missing_output" else outputs


def _compute(request: Request, behaviour: Behaviour) -> list[Output]:
    if request.fault in REFUSALS:
        raise RefusalError(*REFUSALS[request.fault])
    if len(request.texts) > behaviour.max_batch_size:
        raise RefusalError(400, f"batch-size must be <= {behaviour.max_batch_size}")
    contents = request.contents()
    truncate = str(request.parameters.get("truncate", "right"))
    rows = [tokenize(text, pair, truncate) for text, pair in contents]
    for index, row in enumerate(rows):
        if truncate == "error" and row.is_truncated:
            raise RefusalError(
                400,
                f"in ensemble '{MODEL}', text {index} has {row.untruncated_count} tokens, "
                f'the model takes at most {MAX_TOKENS}; shorten it or pass truncate="right"',
            )
    counts = np.array([len(row.tokens) for row in rows], "<i4")
    outputs = [
        Output("TOKEN_COUNT", "INT32", [len(rows), 1], counts.tobytes()),
        Output(
            "TRUNCATED",
            "BOOL",
            [len(rows), 1],
            np.array([row.is_truncated for row in rows], "?").tobytes(),
        ),
    ]
    if request.model == MODEL:
        return [_embedding(contents, request.fault, behaviour.embedding_size), *outputs]
    return _token_outputs(rows) + outputs


def _embedding(contents: list[tuple[Text, Text | None]], fault: str | None, size: int) -> Output:
    texts = [
        [" ".join(text) if isinstance(text, list) else text for text in row] for row in contents
    ]
    vectors = np.array([np.resize(vector_of(*row), size) for row in texts], "<f4").reshape(-1, size)
    if fault == "nan":
        vectors[-1, 3] = np.nan
    if fault == "mixed_up":
        vectors = np.roll(vectors, 1, axis=1)
    if fault == "wrong_count":
        vectors = vectors[:-1]
    if fault == "too_many_rows":
        vectors = np.concatenate([vectors, vectors[:1]])
    datatype = "FP64" if fault == "wrong_dtype" else "FP32"
    data = vectors.astype("<f8" if fault == "wrong_dtype" else "<f4").tobytes()
    if fault == "short_data":
        data = data[:-4]
    return Output("EMBEDDING", datatype, list(vectors.shape), data)


def _token_outputs(rows: list[Tokens]) -> list[Output]:
    shape = [len(rows), max(len(row.tokens) for row in rows)]
    ids = np.zeros(shape, "<i4")
    mask = np.zeros(shape, "<i4")
    type_ids = np.zeros(shape, "<i4")
    offsets = np.zeros([*shape, 2], "<i4")
    strings = []
    for number, row in enumerate(rows):
        length = len(row.tokens)
        ids[number, :length] = list(map(id_of, row.tokens))
        mask[number, :length] = 1
        type_ids[number, :length] = row.type_ids
        offsets[number, :length] = row.offsets
        strings += [*row.tokens, *[""] * (shape[1] - length)]
    return [
        Output("input_ids", "INT32", shape, ids.tobytes()),
        Output("attention_mask", "INT32", shape, mask.tobytes()),
        Output("token_type_ids", "INT32", shape, type_ids.tobytes()),
        Output("TOKENS", "BYTES", shape, binary_strings(strings)),
        Output("OFFSETS", "INT32", [*shape, 2], offsets.tobytes()),
    ]


def binary_strings(strings: list[str]) -> bytes:
    """A BYTES tensor in its binary form: each element behind its length."""
    encoded = [string.encode() for string in strings]
    return b"".join(struct.pack("<I", len(element)) + element for element in encoded)


def strings_of(data: bytes) -> list[str]:
    """Elements of a BYTES tensor in its binary form."""
    strings, offset = [], 0
    while offset < len(data):
        (length,) = struct.unpack_from("<I", data, offset)
        strings.append(data[offset + 4 : offset + 4 + length].decode("utf-8"))
        offset += 4 + length
    return strings


_INPUTS = [("TEXT", "TYPE_STRING", [1]), ("TEXT_PAIR", "TYPE_STRING", [1])]
_IDS = [(name, "TYPE_INT32", [-1]) for name in ("input_ids", "attention_mask", "token_type_ids")]
_COUNTS = [("TOKEN_COUNT", "TYPE_INT32", [1]), ("TRUNCATED", "TYPE_BOOL", [1])]
_OFFSETS = [("TOKENS", "TYPE_STRING", [-1]), ("OFFSETS", "TYPE_INT32", [-1, 2])]


def _tensors(model: str, behaviour: Behaviour) -> tuple[list, list]:
    """Inputs and outputs of a model."""
    embedding = [("EMBEDDING", "TYPE_FP32", [behaviour.embedding_size])]
    return {
        MODEL: (_INPUTS, embedding + _COUNTS),
        "tokenizer": (_INPUTS, _IDS + _COUNTS + _OFFSETS),
        "bert": (_IDS, embedding),
    }[model]


def server_metadata() -> dict:
    """What GET /v2 says."""
    extensions = ["binary_tensor_data", "parameters", "statistics", "system_shared_memory"]
    return {"name": "triton", "version": VERSION, "extensions": extensions}


def model_metadata(model: str, behaviour: Behaviour) -> dict:
    """What GET /v2/models/M says."""
    inputs, outputs = (
        [
            {"name": name, "datatype": kind[5:].replace("STRING", "BYTES"), "shape": [-1, *dims]}
            for name, kind, dims in tensors
        ]
        for tensors in _tensors(model, behaviour)
    )
    platform = "ensemble" if model == MODEL else "python"
    return {
        "name": model,
        "versions": ["1"],
        "platform": platform,
        "inputs": inputs,
        "outputs": outputs,
    }


def model_config(model: str, behaviour: Behaviour) -> dict:
    """What GET /v2/models/M/config says: ModelConfig in its JSON form."""
    inputs, outputs = (
        [{"name": name, "data_type": kind, "dims": dims} for name, kind, dims in tensors]
        for tensors in _tensors(model, behaviour)
    )
    limits = {
        "max_tokens_per_text": MAX_TOKENS,
        "max_characters_per_text": MAX_CHARACTERS,
        "max_characters_per_request": MAX_REQUEST_CHARACTERS,
    }
    parameters = {
        MODEL: {**limits, "dtype": "float32", "pooling": "mean", "normalize": "true"},
        "tokenizer": limits,
        "bert": {"warmup_shapes": "1x8"},
    }[model]
    config = {
        "name": model,
        "max_batch_size": behaviour.max_batch_size,
        "input": inputs,
        "output": outputs,
        "parameters": {name: {"string_value": str(value)} for name, value in parameters.items()},
    }
    if model == MODEL:
        config["platform"] = "ensemble"
        steps = [
            {
                "model_name": step,
                "model_version": -1,
                "input_map": {name: name for name, *_ in _tensors(step, behaviour)[0]},
                "output_map": {name: name for name, *_ in _tensors(step, behaviour)[1]},
            }
            for step in STEPS
        ]
        config["ensemble_scheduling"] = {"step": steps}
    else:
        config["backend"] = "python"
        config["instance_group"] = [{"name": model, "kind": "KIND_CPU", "count": 1}]
    if behaviour.edit_config is not None:
        behaviour.edit_config(config)
    return config


def model_statistics(model: str | None, behaviour: Behaviour) -> dict:
    """What GET /v2/models/stats, or .../M/stats, says."""
    with behaviour.lock:
        tallies = {
            name: tally for name, tally in behaviour.tallies.items() if model in (None, name)
        }
        return {"model_stats": [_statistics(name, tally) for name, tally in tallies.items()]}


def _statistics(name: str, tally: _Tally) -> dict:
    def duration(count: int, ns_each: int) -> dict:
        return {"count": count, "ns": count * ns_each}

    done = tally.succeeded
    return {
        "name": name,
        "version": "1",
        "last_inference": 1_800_000_000_000 if done else 0,
        "inference_count": sum(size * count for size, count in tally.batch_sizes.items()),
        "execution_count": done,
        "inference_stats": {
            "success": duration(done, QUEUE_NS + sum(COMPUTE_NS.values())),
            "fail": duration(tally.failed, QUEUE_NS),
            "queue": duration(done, QUEUE_NS),
            **{stage: duration(done, ns) for stage, ns in COMPUTE_NS.items()},
            "cache_hit": duration(0, 0),
            "cache_miss": duration(0, 0),
        },
        "batch_stats": [
            {
                "batch_size": size,
                **{stage: duration(count, ns) for stage, ns in COMPUTE_NS.items()},
            }
            for size, count in sorted(tally.batch_sizes.items())
        ],
        "memory_usage": [],
    }
