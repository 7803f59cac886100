"""Where an HTTP request is sent to and what it begins with: directly, or through a proxy."""

from __future__ import annotations

import base64
import ssl
import urllib.request
from typing import Dict, Mapping, Optional, Tuple
from urllib.parse import unquote, urlsplit

from .._wire.http import HttpRequest
from .base import Options, Url
from .http1 import request_head


class Route:
    """The way to one server.

    Attributes:
        host: To connect to, the server's or the proxy's.
        port: The same.
        proxy: ``host:port`` of the proxy, without its password; None where the way is direct.
        ssl_context: To wrap the connection with, or None.
        tunnel_request: What opens a tunnel through the proxy, or None where none is needed.
    """

    def __init__(self, url: Url, options: Options) -> None:
        self.url = url
        self.ssl_context: Optional[ssl.SSLContext] = (
            None if options.tls is None else options.tls.ssl_context()
        )
        self._headers = {"host": url.netloc, **options.headers}
        self._target_prefix = ""
        self.host, self.port = url.host, url.port
        self.proxy: Optional[str] = None
        self.tunnel_request: Optional[bytes] = None
        proxy = _proxy_url(options.proxy, url)
        if proxy is None:
            return
        self.host, self.port, proxy_headers = _read_proxy(proxy)
        self.proxy = Url("http", self.host, self.port).netloc
        if url.is_secure:
            headers = {"host": url.netloc, **proxy_headers}
            self.tunnel_request = request_head("CONNECT", url.netloc, headers)
        else:
            self._target_prefix = str(url)
            self._headers.update(proxy_headers)

    def request_bytes(self, request: HttpRequest, extra: Mapping[str, str]) -> Tuple[bytes, bytes]:
        """Return head and body of a request.

        Args:
            request: What is asked.
            extra: Headers of this request alone.
        """
        headers = {**self._headers, **request.headers, **extra}
        if request.method == "POST":
            headers["content-length"] = str(len(request.body))
        head = request_head(request.method, self._target_prefix + request.path, headers)
        return head, request.body


def _proxy_url(setting: Optional[str], url: Url) -> Optional[str]:
    """The proxy for ``url``; "environment" asks HTTP_PROXY, HTTPS_PROXY and NO_PROXY."""
    if setting != "environment":
        return setting
    if urllib.request.proxy_bypass(url.netloc):
        return None
    return urllib.request.getproxies().get(url.scheme)


def _read_proxy(proxy: str) -> Tuple[str, int, Dict[str, str]]:
    """Host, port and headers of ``http://[user:password@]host[:port]``."""
    wanted = "proxy is not http://[USER:PASSWORD@]HOST[:PORT]"  # it may hold a password: not shown
    try:
        parts = urlsplit(proxy)
        port = parts.port or 80
    except ValueError as error:
        raise ValueError(f"{wanted} ({error})") from None
    if parts.scheme != "http" or not parts.hostname or parts.path.strip("/"):
        raise ValueError(wanted)
    headers = {}
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        credentials = base64.b64encode(user.encode("utf-8")).decode("ascii")
        headers["proxy-authorization"] = f"Basic {credentials}"
    return parts.hostname, port, headers
