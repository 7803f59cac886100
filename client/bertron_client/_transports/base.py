"""What a transport does, and the urls that choose one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Mapping, Protocol
from urllib.parse import urlsplit

from .._call import Call
from .._codec import Output, Request

DEFAULT_PORTS = {"grpc": 8001, "http": 8000}  # Triton server's own


class Transport(Protocol):
    """Blocking calls to one server; safe to use from many threads.

    Every method ends within the call's deadline and raises only ``BertronError``.
    """

    def infer(self, model: str, request: Request, call: Call) -> Dict[str, Output]:
        """Return the output tensors, unchecked."""

    def is_model_ready(self, model: str, call: Call) -> bool:
        """Whether the server says that the model answers requests."""

    def model_config(self, model: str, call: Call) -> Mapping[str, Any]:
        """Return Triton server's ModelConfig in its JSON form."""

    def server_version(self, call: Call) -> str:
        """Return the version that the server names."""

    def close(self) -> None:
        """Drop every connection."""


@dataclass(frozen=True)
class Url:
    """A server's address."""

    scheme: str
    host: str
    port: int

    @property
    def netloc(self) -> str:
        """``host:port``, IPv6 addresses in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}"


def parse_url(url: str) -> Url:
    """Read ``grpc://host[:port]`` or ``http://host[:port]``.

    Raises:
        ValueError: Anything else.
    """
    expected = f"url is {url!r}, grpc://HOST:PORT or http://HOST:PORT is wanted"
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
