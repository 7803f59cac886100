"""Triton server's types at the boundary: every request its own answer, whatever happens."""

import functools
import sys
import time

import fake_pb_utils as pb
import numpy as np
import pytest
from bertron_backend.batch_metrics import Counter
from bertron_backend.batch_tokenizer import TokenBatch
from bertron_backend.cost_model import CostModel
from bertron_backend.encoder_queue import Ticket, monotonic_us
from bertron_backend.errors import ExpiredError, InferenceError, InvalidInputError


@pytest.fixture
def triton_io(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", pb)
    monkeypatch.delitem(sys.modules, "bertron_backend.triton_io", raising=False)
    import importlib

    pb.Logger.lines.clear()
    return importlib.import_module("bertron_backend.triton_io")


def text_request(*texts, pairs=None, parameters=None, requested=()):
    arrays = {"TEXT": np.array([[text] for text in texts], dtype=object)}
    if pairs is not None:
        arrays["TEXT_PAIR"] = np.array([[text] for text in pairs], dtype=object)
    return pb.InferenceRequest(parameters, requested=requested, **arrays)


def test_texts_pairs_and_parameters_are_read(triton_io):
    request = text_request(b"a", "é".encode(), pairs=[b"b", b"c"], parameters={"truncate": "left"})
    read = triton_io.read_texts(request)
    assert (read.texts, read.pairs, read.truncate) == (["a", "é"], ["b", "c"], "left")
    plain = triton_io.read_texts(text_request(b""))
    assert (plain.texts, plain.pairs, plain.truncate) == ([""], None, "right")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(True, True), ("true", True), ("True", True), (False, False), ("false", False)],
)
def test_is_pretokenized_may_be_spelled_out(triton_io, value, expected):
    assert not triton_io.read_texts(text_request(b"")).is_pretokenized
    request = text_request(b"[]", parameters={"is_pretokenized": value})
    assert triton_io.read_texts(request).is_pretokenized is expected


@pytest.mark.parametrize("value", ["yes", "", 1, 0, None, []])
def test_another_is_pretokenized_is_refused(triton_io, value):
    request = text_request(b"[]", parameters={"is_pretokenized": value})
    with pytest.raises(InvalidInputError, match=r"is_pretokenized is .*, not true or false"):
        triton_io.read_texts(request)


@pytest.mark.parametrize(
    ("requested", "expected"),
    [
        ((), False),
        (("input_ids", "attention_mask", "TRUNCATED", "ticket"), False),
        (("TOKENS",), True),
        (("input_ids", "OFFSETS"), True),
    ],
)
def test_tokens_are_wanted_by_those_who_ask_for_them(triton_io, requested, expected):
    assert triton_io.read_texts(text_request(b"", requested=requested)).wants_tokens is expected


def test_tokens_and_their_places_are_answered_when_they_are_there(triton_io):
    ids = np.ones((1, 3), dtype=np.int32)
    tokens = np.array([[b"a", b"b", b""]], dtype=np.object_)
    batch = TokenBatch(ids, ids, ids, ids[:, :1], ids[:, :1] > 1, tokens, np.zeros((1, 3, 2)))
    outputs = triton_io.token_response(text_request(b""), (batch, Ticket(1000))).outputs
    assert outputs["TOKENS"] is tokens
    assert outputs["OFFSETS"].shape == (1, 3, 2)


def test_bytes_that_are_not_utf8_are_named(triton_io):
    with pytest.raises(InvalidInputError, match="TEXT 1 is not UTF-8: byte 0xff at position 2"):
        triton_io.read_texts(text_request(b"ok", b"ab\xff"))


def test_pairs_without_texts_are_refused(triton_io):
    request = pb.InferenceRequest(TEXT_PAIR=np.array([[b"a"]], dtype=object))
    with pytest.raises(InvalidInputError, match="the request has no TEXT"):
        triton_io.read_texts(request)


def test_a_parameter_that_is_not_utf8_is_refused(triton_io):
    class Request(pb.InferenceRequest):
        def parameters(self):
            return b"\xff".decode()

    with pytest.raises(InvalidInputError, match="a parameter is not UTF-8: byte 0xff"):
        triton_io.read_texts(Request(TEXT=np.array([[b""]], dtype=object)))


def test_a_message_does_not_repeat_a_long_value(triton_io):
    request = text_request(b"[]", parameters={"is_pretokenized": "x" * 100_000})
    with pytest.raises(InvalidInputError) as caught:
        triton_io.read_texts(request)
    assert len(str(caught.value)) < 200


def test_each_request_gets_its_own_answer_in_order(triton_io):
    requests = [text_request(b"good"), text_request(b"\xff"), text_request(b"bad"), text_request()]

    def answer(readable):
        assert [request.texts for request in readable] == [["good"], ["bad"], []]
        tokens = TokenBatch(*(np.full((1, 1), value) for value in range(5)))
        return [tokens, InvalidInputError("no"), InferenceError("broken")]

    first, second, third, fourth = triton_io.answer_each(
        requests,
        triton_io.read_texts,
        answer,
        lambda request, batch: triton_io.token_response(request, (batch, Ticket(1000))),
    )
    assert first.error is None
    assert set(first.outputs) == {"input_ids", "attention_mask", "token_type_ids", "ticket"}
    assert (second.error.code, third.error.code) == (pb.TritonError.INVALID_ARG,) * 2
    assert "not UTF-8" in str(second.error)
    assert fourth.error.code == pb.TritonError.INTERNAL


def test_an_unexpected_failure_tells_the_client_nothing_of_our_code(triton_io):
    def answer(readable):
        raise KeyError(readable[0].texts[0])

    requests = [text_request(b"a secret"), text_request(b"b")]
    responses = triton_io.answer_each(requests, triton_io.read_texts, answer, None)
    assert [str(response.error) for response in responses] == ["internal error"] * 2
    log = "\n".join(pb.Logger.lines)
    assert "KeyError" in log
    assert "test_triton_io.py" in log
    assert "secret" not in log


def test_the_device_is_the_instances(triton_io):
    cpu = {"model_instance_kind": "CPU", "model_instance_device_id": "0"}
    gpu = {"model_instance_kind": "GPU", "model_instance_device_id": "1"}
    assert (triton_io.device_of(cpu), triton_io.device_of(gpu)) == ("cpu", "cuda:1")


@pytest.mark.parametrize(
    ("timeout_us", "max_wait_us", "expected"), [(0, 7, 7), (5, 7, 5), (7, 5, 5)]
)
def test_a_timeout_can_only_shorten_the_wait(triton_io, timeout_us, max_wait_us, expected):
    request = pb.InferenceRequest(timeout_us=timeout_us)
    assert triton_io.may_take_us(request, max_wait_us) == expected


@pytest.mark.parametrize(
    ("requested", "expected"),
    [
        (("input_ids", "ticket"), True),
        (("input_ids",), False),
        (("input_ids", "ticket", "TOKENS", "OFFSETS"), False),
        ((), False),
    ],
)
def test_those_who_take_a_ticket_and_no_strings_go_on_to_the_encoder(
    triton_io, requested, expected
):
    assert triton_io.is_for_encoder(text_request(b"", requested=requested)) is expected


class SeenTickets:
    def __init__(self):
        self.seen = []

    def see(self, ticket, *, size, is_late):
        self.seen.append((ticket, size, is_late))


def token_request(triton_io, ticket):
    """What the encoder reads of what the tokenizer answered: two texts, the second one cut."""
    ids = np.full((2, 3), 7, dtype=np.int32)
    mask = np.array([[1, 1, 0], [1, 1, 1]], dtype=np.int32)
    tokens = TokenBatch(ids, mask, 0 * ids, mask.sum(1)[:, None], np.array([[False], [True]]))
    outputs = triton_io.token_response(text_request(b""), (tokens, ticket)).outputs
    names = ("input_ids", "attention_mask", "token_type_ids", "ticket")
    return pb.InferenceRequest(**{name: outputs[name] for name in names})


def test_a_request_is_read_until_its_deadline_and_refused_after_it(triton_io):
    queue = SeenTickets()
    ticket = Ticket(monotonic_us() + 20_000, queue=2**62, begin=5, end=7)
    request = token_request(triton_io, ticket)
    assert triton_io.read_tokens(request, queue).input_ids.shape == (2, 3)
    time.sleep(0.03)
    with pytest.raises(ExpiredError, match=r"Request timeout expired 0\.\d+ s before"):
        triton_io.read_tokens(request, queue)
    assert queue.seen == [(ticket, 6, False), (ticket, 6, True)]


def test_what_the_tokenizer_says_of_its_texts_comes_out_of_the_encoder(triton_io):
    request = token_request(triton_io, Ticket(monotonic_us() + 10**7))
    tokens = triton_io.read_tokens(request, SeenTickets())
    rows = np.zeros((2, 4), dtype=np.float32)
    outputs = triton_io.embedding_response(None, (tokens, rows)).outputs
    assert outputs["EMBEDDING"] is rows
    assert outputs["TOKEN_COUNT"].tolist() == [[2], [3]]
    assert outputs["TOKEN_COUNT"].dtype == np.int32
    assert outputs["TRUNCATED"].tolist() == [[False], [True]]
    assert outputs["TRUNCATED"].dtype == np.bool_


@pytest.mark.parametrize(
    ("requested", "expected"),
    [((), set()), (("ticket",), set()), (("TRUNCATED",), {"TOKEN_COUNT", "TRUNCATED"})],
)
def test_the_tokenizer_itself_tells_it_to_those_who_ask(triton_io, requested, expected):
    ids = np.ones((1, 3), dtype=np.int32)
    batch = TokenBatch(ids, ids, ids, ids[:, :1], ids[:, :1] > 1)
    request = text_request(b"", requested=requested)
    outputs = triton_io.token_response(request, (batch, Ticket(1000))).outputs
    assert set(outputs) & {"TOKEN_COUNT", "TRUNCATED"} == expected


def test_token_ids_without_a_ticket_are_read(triton_io):
    queue = SeenTickets()
    ids = np.ones((1, 3), dtype=np.int32)
    request = pb.InferenceRequest(input_ids=ids, attention_mask=ids, token_type_ids=ids)
    tokens = triton_io.read_tokens(request, queue)
    assert tokens.input_ids is ids
    assert queue.seen == []
    rows = np.zeros((1, 4), dtype=np.float32)
    outputs = triton_io.embedding_response(None, (tokens, rows)).outputs
    assert (outputs["TOKEN_COUNT"].tolist(), outputs["TRUNCATED"].tolist()) == ([[3]], [[False]])


class FakeMetricFamily:
    """Its metrics are on the page as long as it lives, as in Triton server."""

    COUNTER, GAUGE = "counter", "gauge"

    def __init__(self, page, name, description, kind):
        assert description
        assert name not in page, "a family is made once"
        self.page, self.name, self.kind = page, name, kind
        page[name] = {}

    def __del__(self):
        del self.page[self.name]

    def Metric(self, labels):  # noqa: N802 - Triton server's name
        return FakeMetric(self, tuple(sorted(labels.items())))


class FakeMetric:
    def __init__(self, family, key):
        self.values, self.kind, self.key = family.page[family.name], family.kind, key
        self.values[key] = 0.0

    def set(self, value):
        assert self.kind == "gauge"
        self.values[self.key] = value

    def increment(self, value):
        assert self.kind == "counter"
        assert value > 0, "a message for nothing"
        self.values[self.key] += value


def test_metrics_are_shown_with_their_labels_until_they_are_removed(triton_io, monkeypatch):
    page = {}
    family = functools.partial(FakeMetricFamily, page)
    family.COUNTER, family.GAUGE = FakeMetricFamily.COUNTER, FakeMetricFamily.GAUGE
    monkeypatch.setattr(pb, "MetricFamily", family, raising=False)
    metrics = triton_io.InstanceMetrics({"model_name": "m", "model_instance_name": "m_0_1"})
    metrics.show_cost(CostModel(fixed_ms=1, token_ms=2, pair_ms=3))
    texts, bucket = Counter("bertron_texts_total"), Counter("bertron_batch_tokens_bucket", "16")
    for growth in (0, 5, 2):
        metrics.add(texts, growth)
    metrics.add(bucket, 0)
    own = (("model", "m"), ("model_instance", "m_0_1"))
    assert page == {
        "bertron_forward_cost_ms": {
            (*own, ("part", part)): value
            for part, value in (("fixed", 1), ("token", 2), ("pair", 3))
        },
        "bertron_texts_total": {own: 7},
        "bertron_batch_tokens_bucket": {(("le", "16"), *own): 0},
    }
    metrics.remove()
    assert page == {}
