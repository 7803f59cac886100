"""What a transport does, and the urls that choose one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Dict, Mapping, Optional, Protocol
from urllib.parse import urlsplit

from .._arguments import check_type
from .._call import Call
from .._tls import Tls
from .._wire.operations import Operation

# Triton server's own, and the web's.
DEFAULT_PORTS = {"grpc": 8001, "grpcs": 8001, "http": 8000, "https": 443}
# What says where a request ends, and how it is packed.
_OWN_HEADERS = (
    *("connection", "content-encoding", "content-length", "content-type", "expect"),
    *("inference-header-content-length", "te", "trailer", "transfer-encoding", "upgrade"),
)
_HEADER_NAME = re.compile(r"[a-z0-9_.-]+")  # what gRPC allows; HTTP allows a little more
_WANTED = "http://, https://, grpc:// or grpcs://HOST:PORT is wanted"


class Transport(Protocol):
    """Carries operations to one server; safe to use from many threads."""

    def perform(self, operation: Operation, call: Call) -> Any:
        """Return the operation's result, as ``_wire.operations`` says.

        Ends within the call's deadline and raises only ``BertronError``.
        """

    def close(self) -> None:
        """Drop every connection."""

    def forget(self) -> None:
        """Let go of connections that another process owns: this one is its fork."""


class AsyncTransport(Protocol):
    """The same for tasks of one event loop."""

    async def perform(self, operation: Operation, call: Call) -> Any:
        """As ``Transport.perform``."""

    async def close(self) -> None:
        """Drop every connection."""

    def forget(self) -> None:
        """Let go of connections of another process or of an event loop that has ended."""


@dataclass(frozen=True)
class Url:
    """A server's address."""

    scheme: str
    host: str
    port: int

    @property
    def is_grpc(self) -> bool:
        """Whether gRPC is spoken there, rather than HTTP."""
        return self.scheme.startswith("grpc")

    @property
    def is_secure(self) -> bool:
        """Whether the connection is one over TLS."""
        return self.scheme in ("https", "grpcs")

    @property
    def netloc(self) -> str:
        """``host:port``, IPv6 addresses in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}"


@dataclass(frozen=True)
class Options:
    """How a client connects.

    Attributes:
        connect_timeout_s: Limit of opening one connection, TLS included.
        headers: Sent with every request, names in lower case.
        compression: "gzip" or None.
        tls: Certificates; not None exactly for https and grpcs.
        proxy: Of HTTP: a url, "environment" or None.
    """

    connect_timeout_s: float
    headers: Dict[str, str]
    compression: Optional[str]
    tls: Optional[Tls]
    proxy: Optional[str]


def parse_url(url: str) -> Url:
    """Read ``SCHEME://host[:port]``.

    Raises:
        ValueError: Anything else.
    """
    expected = f"url is {url!r}, {_WANTED}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{expected} ({error})") from None
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
        raise ValueError(expected)
    if parts.path.strip("/") or parts.query or parts.fragment or parts.username:
        raise ValueError(f"{expected}, nothing behind the port and no user before the host")
    if port == 0:
        raise ValueError(f"{expected}; port 0 is none")
    return Url(parts.scheme, parts.hostname, port or DEFAULT_PORTS[parts.scheme])


def make_options(
    url: Url,
    *,
    connect_timeout_s: float,
    headers: Optional[Mapping[str, str]],
    token: Optional[str],
    compression: Optional[str],
    tls: Optional[Tls],
    proxy: Optional[str],
) -> Options:
    """Check what the user chose, and put it together.

    Raises:
        TypeError: A choice of a type that cannot be meant.
        ValueError: A choice that does not go with the others, or that no server could make right.
        OSError: A file that ``tls`` names cannot be read.
    """
    check_type("headers", headers, "a mapping of str to str or None", Mapping, type(None))
    check_type("token", token, "a str or None", str, type(None))
    check_type("tls", tls, "a Tls or None", Tls, type(None))
    check_type("proxy", proxy, "a url as str or None", str, type(None))
    if compression not in (None, "gzip"):
        raise ValueError(f"compression is {compression!r}, 'gzip' or None is wanted")
    if tls is not None and not url.is_secure:
        raise ValueError(f"tls is given, but {url} is not encrypted; https:// or grpcs:// is")
    if proxy is not None and url.is_grpc:
        raise ValueError(f"proxy is given, but {url} is not HTTP")
    if tls is not None:
        tls.check_files()
    return Options(
        connect_timeout_s=connect_timeout_s,
        headers=_checked_headers(headers, token),
        compression=compression,
        tls=(tls or Tls()) if url.is_secure else None,
        proxy=proxy,
    )


def _checked_headers(headers: Optional[Mapping[str, str]], token: Optional[str]) -> Dict[str, str]:
    """The headers of every request, names in lower case."""
    lowered = {}
    for name, value in (headers or {}).items():
        check_type("a name in headers", name, "a str", str)
        check_type(f"the value of header {name!r}", value, "a str", str)
        lowered[name.lower()] = value
    if token is not None:
        if "authorization" in lowered:
            raise ValueError("token and an authorization header are given, one of them is wanted")
        lowered["authorization"] = f"Bearer {token}"
    for name, value in lowered.items():
        if not _HEADER_NAME.fullmatch(name):
            raise ValueError(f"header {name!r} is no name, only a-z, 0-9, -, _ and . make one")
        if name in _OWN_HEADERS:
            raise ValueError(f"header {name!r} is the client's own to set")
        if not (value.isascii() and value.isprintable()):  # not shown: it may be a secret
            raise ValueError(f"the value of header {name!r} holds what is not printable ASCII")
    return lowered
