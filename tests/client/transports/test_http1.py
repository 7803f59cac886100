"""HTTP/1.1 without I/O: whatever the pieces it comes in, an answer is the same answer."""

import gzip
import zlib

import pytest
from bertron_client import ProtocolError, ServerUnavailableError
from bertron_client._transports.http1 import MAX_HEAD_BYTES, AnswerParser, request_head
from bertron_client._wire.tensors import MAX_ANSWER_BYTES
from hypothesis import given
from hypothesis import strategies as st

BODY = b"0123456789" * 7
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3\r\n012\r\n3d;note=1\r\n" + BODY[3:64] + b"\r\n6\r\n" + BODY[64:] + b"\r\n"
    b"0\r\nTrailer: x\r\n\r\n"
)
PLAIN = b"HTTP/1.1 200 OK\r\ncontent-length: 70\r\nA: b\r\nA:  c \r\n\r\n" + BODY
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + PLAIN
TO_THE_END = b"HTTP/1.1 200 OK\r\n\r\n" + BODY
PACKED = gzip.compress(BODY)
ZIPPED = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s" % (
    len(PACKED),
    PACKED,
)


def parse(data, cuts=(), *, is_ended=False, method="POST"):
    parser = AnswerParser(method, "u")
    pieces = [data[i:j] for i, j in zip([0, *cuts], [*cuts, len(data)])]
    answer = None
    for number, piece in enumerate(piece for piece in pieces if piece):
        assert answer is None, f"complete before piece {number}"
        answer = parser.feed(piece)
    if is_ended:
        answer = answer or parser.feed(b"")
    return answer, parser


@given(
    st.sampled_from([CHUNKED, PLAIN, INTERIM, ZIPPED]),
    st.lists(st.integers(0, 160), max_size=12).map(sorted),
)
def test_an_answer_is_the_same_however_it_is_cut(data, cuts):
    answer, parser = parse(data, [cut for cut in cuts if cut < len(data)])
    assert (answer.status, answer.body) == (200, BODY)
    assert parser.is_reusable


@given(st.lists(st.integers(0, 88), max_size=9).map(sorted))
def test_an_answer_without_a_length_ends_with_the_connection(cuts):
    answer, parser = parse(TO_THE_END, cuts, is_ended=True)
    assert answer.body == BODY
    assert not parser.is_reusable


def test_headers_are_in_lower_case_and_joined():
    assert parse(PLAIN)[0].headers == {"content-length": "70", "a": "b, c"}


@pytest.mark.parametrize(
    ("head", "reusable"),
    [
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n", False),
        (b"HTTP/1.0 200 OK\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n", True),
        (b"HTTP/1.1 503 No\r\n", True),
    ],
)
def test_when_another_request_may_follow(head, reusable):
    _, parser = parse(head + b"content-length: 2\r\n\r\nab")
    assert parser.is_reusable is reusable


def test_what_comes_behind_an_answer_ends_the_connection():
    for data in (PLAIN, CHUNKED):
        answer, parser = parse(data + b"HTTP/1.1 200 OK\r\n")
        assert answer.body == BODY
        assert not parser.is_reusable


def test_answers_without_a_body():
    assert parse(b"HTTP/1.1 204 No Content\r\n\r\n")[0].body == b""
    answer, _ = parse(b"HTTP/1.1 200 Established\r\ncontent-length: 9\r\n\r\n", method="CONNECT")
    assert answer.status == 200


def test_deflate_is_read_too():
    packed = zlib.compress(BODY)
    head = b"HTTP/1.1 200 OK\r\ncontent-encoding: deflate\r\ncontent-length: %d\r\n\r\n"
    assert parse(head % len(packed) + packed)[0].body == BODY


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x00",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nName : value\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1e3\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: \xb2\r\n\r\n",  # a digit, and no number
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nabcd",
        b"HTTP/1.1 200 OK\r\ncontent-encoding: br\r\ncontent-length: 1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 20\r\n\r\n" + PACKED[:20],
    ],
)
def test_what_is_no_http_answer_is_a_protocol_error(data):
    with pytest.raises(ProtocolError, match=r"not HTTP/1\.1"):
        parse(data)


@given(
    # As far as each of the ways to end: a head, chunks, a length, the connection.
    st.sampled_from([b"", b"transfer-encoding: chunked\r\n\r\n", b"content-length: ", b"\r\n"]),
    st.lists(
        st.sampled_from([b"\r\n", b"\r\n\r\n", b"0", b"3", b"-", b":"]) | st.binary(max_size=9),
        max_size=20,
    ).map(b"".join),
)
def test_any_bytes_are_an_answer_or_an_error_of_ours(start, data):
    try:
        answer, _ = parse(b"HTTP/1.1 200 OK\r\n" + start + data, is_ended=True)
    except (ProtocolError, ServerUnavailableError):
        return
    assert answer.status == 200
    assert len(answer.body) <= len(data)


@pytest.mark.parametrize("data", [PLAIN[:-1], CHUNKED[:-3], PLAIN[:20]])
def test_an_answer_that_is_cut_off_is_a_lost_connection(data):
    with pytest.raises(ServerUnavailableError, match=r"ended after \d+ bytes of an answer"):
        parse(data, is_ended=True)


def test_no_answer_at_all_is_a_lost_connection():
    with pytest.raises(ServerUnavailableError, match="closed without an answer"):
        AnswerParser("POST", "u").feed(b"")


def test_sizes_are_limited():
    bomb = zlib.compress(bytes(MAX_ANSWER_BYTES + 1), 9)
    head = b"HTTP/1.1 200 OK\r\n"
    for data, words in (
        (b"HTTP/1.1 200 OK\r\nA: " + b"x" * MAX_HEAD_BYTES, "head is larger"),
        (head + b"content-length: %d\r\n\r\n" % (MAX_ANSWER_BYTES + 1), "larger than"),
        (head + b"transfer-encoding: chunked\r\n\r\nfffffffff\r\n", "larger than"),
        (head + b"transfer-encoding: chunked\r\n\r\n" + b"1" * MAX_HEAD_BYTES + b"2", "chunk"),
        (
            head + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(bomb) + bomb,
            "larger than",
        ),
    ):
        with pytest.raises(ProtocolError, match=words):
            parse(data)


def test_a_header_cannot_hold_a_line_break():
    with pytest.raises(ValueError, match="control character"):
        request_head("GET", "/", {"a": "b\r\nc: d"})
    assert request_head("GET", "/v2", {"a": "b"}) == b"GET /v2 HTTP/1.1\r\na: b\r\n\r\n"
