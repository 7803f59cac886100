"""Bertron as LangChain's ``Embeddings``."""

from __future__ import annotations

from typing import Any, List, Optional, Sequence

from langchain_core.embeddings import Embeddings

from .. import AsyncClient, Client
from ._clients import Clients


class BertronEmbeddings(Embeddings):
    """Embeddings for LangChain's vector stores and retrievers.

        store = InMemoryVectorStore(BertronEmbeddings("grpc://127.0.0.1:8001"))

    The asynchronous methods go through an AsyncClient. Errors are the client's.

    Args:
        url: Of the server, as for Client.
        client: An open Client instead of a url; it stays the caller's to close.
        async_client: An open AsyncClient, likewise; without it, ``client`` is used in a thread.
        truncate: As for ``Client.embed``.
        normalize: As for ``Client.embed``.
        dimensions: As for ``Client.embed``.
        query_prefix: Put before each query, for models that were trained with one.
        document_prefix: Put before each document, likewise.
        client_options: Client's keyword arguments, with a url. ``timeout_s`` is for one call:
            raise it where a store hands on many documents at once.

    Raises:
        TypeError: Both a url and a client, or neither.
        ValueError: As Client.
    """

    def __init__(
        self,
        url: Optional[str] = None,
        *,
        client: Optional[Client] = None,
        async_client: Optional[AsyncClient] = None,
        truncate: str = "right",
        normalize: Optional[bool] = None,
        dimensions: Optional[int] = None,
        query_prefix: str = "",
        document_prefix: str = "",
        **client_options: Any,
    ) -> None:
        self._clients = Clients(url, client, async_client, client_options)
        self._options = {
            "truncate": truncate,
            "normalize": normalize,
            "dimensions": dimensions,
        }
        self._query_prefix = query_prefix
        self._document_prefix = document_prefix

    def embed_documents(self, texts: List[str]) -> List[List[float]]:
        """Return one vector for each text, in order."""
        return self._clients.embed(self._documents(texts), **self._options).tolist()

    def embed_query(self, text: str) -> List[float]:
        """Return the vector of one text."""
        return self._clients.embed([self._query_prefix + text], **self._options).tolist()[0]

    async def aembed_documents(self, texts: List[str]) -> List[List[float]]:
        """Return one vector for each text, in order."""
        return (await self._clients.embed_async(self._documents(texts), **self._options)).tolist()

    async def aembed_query(self, text: str) -> List[float]:
        """Return the vector of one text."""
        embeddings = await self._clients.embed_async([self._query_prefix + text], **self._options)
        return embeddings.tolist()[0]

    def close(self) -> None:
        """Close the Client opened for the url."""
        self._clients.close()

    async def aclose(self) -> None:
        """Close the Client and the AsyncClient opened for the url."""
        await self._clients.close_async()

    def _documents(self, texts: Sequence[str]) -> Sequence[str]:
        if not self._document_prefix:
            return texts
        return [self._document_prefix + text for text in texts]
