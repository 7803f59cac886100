"""The clients of an adapter: the caller's, which stay open, or its own, opened from a url."""

from __future__ import annotations

import asyncio
import threading
import weakref
from typing import Any, Dict, Iterable, Mapping, Optional, Tuple

from .. import AsyncClient, Client, Embeddings


class Clients:
    """A Client for threads and an AsyncClient for each event loop, whichever is asked for.

    With a url both are opened from it, and closed here or when dropped. A caller's own clients are
    used as they are and never closed here; with a Client alone, coroutines use it in a thread.

    Args:
        url: Of the server; None where clients are given.
        client: The caller's own.
        async_client: The caller's own.
        options: Client's keyword arguments; with a url only.

    Raises:
        TypeError: Both a url and clients, or neither; an option that Client has not.
        ValueError: As Client.
    """

    def __init__(
        self,
        url: Optional[str],
        client: Optional[Client] = None,
        async_client: Optional[AsyncClient] = None,
        options: Optional[Mapping[str, Any]] = None,
    ) -> None:
        self._url = url
        self._options = dict(options or {})
        self._given_async_client = async_client
        self._async_clients: Dict[asyncio.AbstractEventLoop, AsyncClient] = {}
        self._lock = threading.Lock()
        self._is_closed = False
        self._client = client
        if url is not None:
            if client is not None or async_client is not None:
                raise TypeError("url and a client are given, one of them is wanted")
            self._client = Client(url, **self._options)  # here, so that it checks the arguments
            # Adapters are dropped rather than closed: scikit-learn clones one for each fold.
            weakref.finalize(self, self._client.close)
        elif client is None and async_client is None:
            raise TypeError("neither url nor client is given, one of them is wanted")
        elif self._options:
            raise TypeError(
                f"{', '.join(self._options)}: options go with url, a client has its own"
            )

    @property
    def client(self) -> Client:
        """The Client.

        Raises:
            TypeError: Only an AsyncClient was given.
        """
        if self._client is None:
            raise TypeError("only async_client is given; without await, url or client is wanted")
        return self._client

    def embed(self, texts: Iterable[str], **options: Any) -> Embeddings:
        """As ``Client.embed``."""
        return self.client.embed(texts, **options)

    async def embed_async(self, texts: Iterable[str], **options: Any) -> Embeddings:
        """As ``AsyncClient.embed``."""
        if self._given_async_client is not None:
            return await self._given_async_client.embed(texts, **options)
        if self._url is None:
            return await asyncio.to_thread(self.client.embed, texts, **options)
        return await self._async_client(self._url).embed(texts, **options)

    def close(self) -> None:
        """Close the own Client; later calls raise RuntimeError."""
        self._is_closed = True
        if self._url is not None:
            self.client.close()

    async def close_async(self) -> None:
        """Close the own Client, and the AsyncClient of this event loop and of ended ones."""
        self.close()
        here = asyncio.get_running_loop()
        with self._lock:
            loops = [loop for loop in self._async_clients if loop is here or loop.is_closed()]
            clients = [self._async_clients.pop(loop) for loop in loops]
        for client in clients:
            await client.close()

    def refuse_copy(self) -> None:
        """Say why an adapter with a caller's client cannot be pickled.

        Raises:
            TypeError: Clients were given.
        """
        if self._url is None:
            raise TypeError("a client cannot be pickled; give url and its options instead")

    def __reduce__(self) -> Tuple[Any, ...]:
        self.refuse_copy()
        return (Clients, (self._url, None, None, self._options))

    def _async_client(self, url: str) -> AsyncClient:
        """The running event loop's own; connections of one loop are no good in another."""
        here = asyncio.get_running_loop()
        with self._lock:
            if self._is_closed:
                raise RuntimeError(f"the client is closed ({url})")
            client = self._async_clients.get(here)
            if client is None:
                # A client whose loop has ended starts anew in this one: asyncio.run, time after
                # time, leaves one client and not one each.
                ended = next((loop for loop in self._async_clients if loop.is_closed()), None)
                if ended is None:
                    client = AsyncClient(url, **self._options)
                else:
                    client = self._async_clients.pop(ended)
                self._async_clients[here] = client
            return client
