"""Wrong answers over HTTP: each sends one for an inference that was computed."""

from __future__ import annotations

import gzip
import socket
import struct
import zlib
from collections.abc import Callable
from functools import cache

HEADER_LENGTH = "Inference-Header-Content-Length"


def _headers(json_part: bytes, data: bytes) -> dict[str, str]:
    return {
        HEADER_LENGTH: str(len(json_part)),
        "Content-Length": str(len(json_part) + len(data)),
    }


def not_json(connection, json_part, data):
    page = b"<html>welcome</html>"
    connection.write(connection.head(200, {"Content-Length": str(len(page))}) + page)


def truncated_json(connection, json_part, data):
    connection.write(connection.head(200, {"Content-Length": "40"}) + json_part[:40])


def wrong_header_length(connection, json_part, data):
    """The JSON part is said to be longer than everything."""
    headers = _headers(json_part, data)
    headers[HEADER_LENGTH] = str(len(json_part) + len(data) + 1)
    connection.write(connection.head(200, headers) + json_part + data)


def duplicate(connection, json_part, data):
    """Two answers to one request, on a connection that stays open."""
    head = connection.head(200, _headers(json_part, data))
    connection.write((head + json_part + data) * 2)


def content_length_too_short(connection, json_part, data):
    """The last bytes would be the head of the next answer."""
    headers = _headers(json_part, data)
    headers["Content-Length"] = str(len(json_part) + len(data) - 8)
    connection.write(connection.head(200, headers) + json_part + data)


def content_length_too_long(connection, json_part, data):
    """The client waits for bytes that never come."""
    headers = _headers(json_part, data)
    headers["Content-Length"] = str(len(json_part) + len(data) + 10)
    connection.write(connection.head(200, headers) + json_part + data)
    connection.behaviour.released.wait(60)
    connection.close_connection = True


def late_body(connection, json_part, data):
    """A head at once, and the body when the client may have given up: still of this request."""
    head = connection.head(200, _headers(json_part, data))
    connection.write(head)
    connection.behaviour.stopped.wait(connection.behaviour.late_s)
    connection.write(json_part + data)


def cut_off(connection, json_part, data):
    """The connection ends in the middle of the body."""
    connection.write(connection.head(200, {"Content-Length": "500"}) + b"only this")
    connection.close_connection = True


def close(connection, json_part, data):
    """The connection ends without an answer."""
    connection.close_connection = True


def reset(connection, json_part, data):
    linger = struct.pack("ii", 1, 0)
    connection.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    connection.connection.close()
    connection.close_connection = True


def huge(connection, json_part, data):
    """More than any client should take."""
    connection.write(connection.head(200, {"Content-Length": "99999999999999"}))
    connection.close_connection = True
    for _ in range(200):
        connection.write(bytes(1024 * 1024))


def broken_chunks(connection, json_part, data):
    """A chunk's size that is no number."""
    body = json_part + data
    head = connection.head(200, {"Transfer-Encoding": "chunked"})
    connection.write(head + b"%x\r\n%s\r\nno number\r\n" % (len(body), body))
    connection.close_connection = True


def cut_chunks(connection, json_part, data):
    """All bytes came, and the connection ends before the last chunk says so."""
    body = json_part + data
    headers = {HEADER_LENGTH: str(len(json_part)), "Transfer-Encoding": "chunked"}
    connection.write(connection.head(200, headers) + b"%x\r\n%s\r\n" % (len(body), body))
    connection.close_connection = True


def broken_gzip(connection, json_part, data):
    """The stream lacks its end."""
    _send_gzip(connection, json_part, gzip.compress(json_part + data)[:-12])


def wrong_gzip(connection, json_part, data):
    """Said to be gzip, and is not."""
    _send_gzip(connection, json_part, json_part + data)


def gzip_bomb(connection, json_part, data):
    """4 GiB of zeros in 4 MB."""
    _send_gzip(connection, json_part, bomb())


@cache
def bomb() -> bytes:
    """One MiB's blocks again and again: made at once, and right up to its missing end."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    blocks = deflate.compress(bytes(2**20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    return b"\x1f\x8b\x08" + bytes(6) + b"\xff" + blocks * 4096


def _send_gzip(connection, json_part, body):
    headers = {**_headers(json_part, b""), "Content-Encoding": "gzip"}
    headers["Content-Length"] = str(len(body))
    connection.write(connection.head(200, headers) + body)


def drip(connection, json_part, data):
    """A body, a byte at a time, without end."""
    connection.close_connection = True
    connection.write(connection.head(200, {"Content-Length": "1000000"}))
    while not connection.behaviour.released.wait(0.02):
        connection.write(b"{")


def drip_head(connection, json_part, data):
    """A head, a byte at a time, without end."""
    connection.close_connection = True
    connection.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while not connection.behaviour.released.wait(0.02):
        connection.write(b"x")


def endless_head(connection, json_part, data):
    """Headers as fast as they are read."""
    connection.close_connection = True
    connection.write(b"HTTP/1.1 200 OK\r\n")
    while not connection.behaviour.released.is_set():
        connection.write(b"X-Again: and again\r\n" * 100)


def endless_interim(connection, json_part, data):
    """100 Continue for ever."""
    connection.close_connection = True
    while not connection.behaviour.released.is_set():
        connection.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)


# Answers that a client waits for until its deadline.
ENDLESS_FAULTS = ("content_length_too_long", "drip", "drip_head")
FAULTS: dict[str, Callable] = {
    function.__name__: function
    for function in (
        not_json,
        truncated_json,
        wrong_header_length,
        duplicate,
        content_length_too_short,
        content_length_too_long,
        late_body,
        cut_off,
        close,
        reset,
        huge,
        broken_chunks,
        cut_chunks,
        broken_gzip,
        wrong_gzip,
        gzip_bomb,
        drip,
        drip_head,
        endless_head,
        endless_interim,
    )
}
