"""HTTP/1.1 without I/O: a request to bytes, and bytes as they come to an answer.

Both HTTP transports stand on it, so that they cannot differ in what they take for an answer.

Source: RFC 9112.
"""

from __future__ import annotations

import re
import zlib
from typing import Dict, Mapping, Optional

from .._exceptions import ProtocolError, ServerUnavailableError
from .._wire.http import HttpAnswer
from .._wire.tensors import MAX_ANSWER_BYTES

MAX_HEAD_BYTES = 64 * 1024  # Triton server's is below 500
_BODILESS = (204, 304)
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")


def request_head(method: str, target: str, headers: Mapping[str, str]) -> bytes:
    """Return the request line and the headers.

    Raises:
        ValueError: A header holds what no header can, above all a line break.
    """
    lines = [f"{method} {target} HTTP/1.1"]
    for name, value in headers.items():
        line = f"{name}: {value}"
        if _CONTROL_CHARACTER.search(line):
            raise ValueError(f"the value of header {name} holds a control character")
        lines.append(line)
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


class AnswerParser:
    """Takes the bytes of one answer as they come.

    Args:
        method: Of the request: the answer to CONNECT has no body.
        where: Url and model, for the reader of an error.
    """

    def __init__(self, method: str, where: str) -> None:
        self._method = method
        self._where = where
        self._buffer = bytearray()
        self._status = 0
        self._headers: Optional[Dict[str, str]] = None
        self._length: Optional[int] = None  # of the body; None: chunked, or to the end
        self._is_chunked = False
        self._chunk_left: Optional[int] = None  # None: a chunk's size comes next
        self._is_in_trailers = False
        self._body = bytearray()
        self.is_reusable = False  # whether another request may follow on the connection
        self.has_begun = False

    def feed(self, data: bytes) -> Optional[HttpAnswer]:
        """Take what came; b"" is the connection's end. Return the answer once it is complete.

        Raises:
            ProtocolError: What came is no HTTP answer, or a too large one.
            ServerUnavailableError: The connection ended before the answer did.
        """
        if not data:
            return self._end()
        self.has_begun = True
        self._buffer += data
        while self._headers is None:
            if not self._read_head():
                return None
        return self._read_body()

    def _end(self) -> HttpAnswer:
        if self._headers is not None and self._length is None and not self._is_chunked:
            return self._answer()
        if not self.has_begun:
            raise ServerUnavailableError(
                f"the connection was closed without an answer ({self._where})"
            )
        count = len(self._body) + (0 if self._headers is None else len(self._buffer))
        raise ServerUnavailableError(
            f"the connection ended after {count} bytes of an answer ({self._where})"
        )

    def _read_head(self) -> bool:
        """Read status line and headers where they are complete, interim answers aside."""
        if not b"HTTP/".startswith(bytes(self._buffer[:5])):
            raise self._bad(f"it begins with {bytes(self._buffer[:40])!r}")
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise self._bad(f"its head is larger than {MAX_HEAD_BYTES} bytes")
            return False
        lines = self._buffer[:end].decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        version, _, rest = lines[0].partition(" ")
        status = rest.partition(" ")[0]
        if not (version.startswith("HTTP/1.") and status.isdecimal() and len(status) == 3):
            raise self._bad(f"its first line is {lines[0][:80]!r}")
        self._status = int(status)
        if 100 <= self._status < 200:  # interim; a switch of protocols nobody asked for
            if self._status == 101:
                raise self._bad("it switches to another protocol")
            return bool(self._buffer)
        headers = self._read_headers(lines[1:])
        self._choose_framing(headers)
        connection = headers.get("connection", "").lower()
        keeps = "keep-alive" in connection if version == "HTTP/1.0" else "close" not in connection
        self.is_reusable = keeps and (self._length is not None or self._is_chunked)
        self._headers = headers
        return True

    def _read_headers(self, lines: "list[str]") -> Dict[str, str]:
        headers: Dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon or not name or name != name.strip():
                raise self._bad(f"a header line is {line[:80]!r}")
            name, value = name.lower(), value.strip()
            if name in headers:
                if name == "content-length" and headers[name] != value:
                    raise self._bad(f"its length is {headers[name]} and {value}")
                value = value if name == "content-length" else f"{headers[name]}, {value}"
            headers[name] = value
        return headers

    def _choose_framing(self, headers: Mapping[str, str]) -> None:
        """Find out how the body ends. Source: RFC 9112, section 6.3."""
        if self._status in _BODILESS or (self._method == "CONNECT" and self._status < 300):
            self._length = 0
            return
        coding = headers.get("transfer-encoding")
        if coding is not None:
            if coding.lower() != "chunked":
                raise self._bad(f"its transfer coding is {coding[:40]!r}")
            self._is_chunked = True
            return
        length = headers.get("content-length")
        if length is None:
            return
        if not (length.isascii() and length.isdecimal()):
            raise self._bad(f"its content-length is {length[:40]!r}")
        self._length = int(length)
        self._check_size(self._length)

    def _read_body(self) -> Optional[HttpAnswer]:
        if self._is_chunked:
            return self._answer() if self._read_chunks() else None
        self._body += self._buffer
        self._buffer.clear()
        self._check_size(len(self._body))
        if self._length is None or len(self._body) < self._length:
            return None
        if len(self._body) > self._length:  # whose answer the rest would be, nobody can say
            self.is_reusable = False
            del self._body[self._length :]
        return self._answer()

    def _read_chunks(self) -> bool:
        """Take the complete chunks out of the buffer; True behind the last one."""
        while True:
            if self._chunk_left is None:
                end = self._buffer.find(b"\r\n")
                if end < 0:
                    if len(self._buffer) > MAX_HEAD_BYTES:
                        raise self._bad("a chunk's head does not end")
                    return False
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 2]
                if self._is_in_trailers:
                    if line:
                        continue
                    if self._buffer:
                        self.is_reusable = False
                    return True
                self._start_chunk(line.partition(b";")[0].strip())
                continue
            if len(self._buffer) < self._chunk_left + 2:
                return False
            self._body += self._buffer[: self._chunk_left]
            if self._buffer[self._chunk_left : self._chunk_left + 2] != b"\r\n":
                raise self._bad("a chunk is longer than it says")
            del self._buffer[: self._chunk_left + 2]
            self._chunk_left = None

    def _start_chunk(self, size: bytes) -> None:
        if not size or not all(digit in b"0123456789abcdefABCDEF" for digit in size):
            raise self._bad(f"a chunk's size is {size[:40]!r}")
        count = int(size, 16)
        self._check_size(len(self._body) + count)
        if count:
            self._chunk_left = count
        else:
            self._is_in_trailers = True

    def _answer(self) -> HttpAnswer:
        headers = self._headers or {}
        body = bytes(self._body)
        coding = headers.get("content-encoding", "identity").lower()
        if coding != "identity" and body:
            body = self._decompressed(coding, body)
        return HttpAnswer(self._status, headers, body)

    def _decompressed(self, coding: str, body: bytes) -> bytes:
        if coding not in ("gzip", "deflate"):
            raise self._bad(f"its content coding is {coding[:40]!r}")
        inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)  # either of the two, by its head
        try:
            content = inflate.decompress(body, MAX_ANSWER_BYTES + 1)
        except zlib.error as error:
            raise self._bad(f"its {coding} data are broken: {error}") from error
        self._check_size(len(content))
        if not inflate.eof:
            raise self._bad(f"its {coding} data are cut off")
        return content

    def _check_size(self, count: int) -> None:
        if count > MAX_ANSWER_BYTES:
            raise ProtocolError(
                f"the answer is larger than {MAX_ANSWER_BYTES} bytes ({self._where})"
            )

    def _bad(self, reason: str) -> ProtocolError:
        return ProtocolError(f"the answer is not HTTP/1.1: {reason} ({self._where})")
