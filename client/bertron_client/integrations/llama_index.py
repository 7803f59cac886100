"""Bertron as LlamaIndex's embedding model."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr

from .. import AsyncClient, Client
from ._clients import Clients


class BertronEmbedding(BaseEmbedding):
    """An embedding model for LlamaIndex's indices and ingestion pipelines.

        index = VectorStoreIndex(nodes, embed_model=BertronEmbedding("grpc://127.0.0.1:8001"))

    The asynchronous methods go through an AsyncClient. Errors are the client's.

    ``to_dict`` leaves ``client_options`` out, for they may hold a token; ``from_dict(data,
    token=...)`` gives them anew.

    Args:
        url: Of the server, as for Client.
        client: An open Client instead of a url; it stays the caller's to close.
        async_client: An open AsyncClient, likewise; without it, ``client`` is used in a thread.
        model_name: The model on the server.
        client_options: Client's other keyword arguments, with a url.
        keywords: The fields below and BaseEmbedding's; all others are added to
            ``client_options``.

    Raises:
        TypeError: Both a url and a client, or neither.
        ValueError: As Client.
    """

    url: Optional[str] = Field(default=None, description="Of the server.")
    truncate: str = Field(default="right", description="Which end of a long text is cut.")
    normalize: Optional[bool] = Field(default=None, description="Whether to make length 1.")
    dimensions: Optional[int] = Field(default=None, description="How many components to keep.")
    query_instruction: str = Field(default="", description="Put before each query.")
    text_instruction: str = Field(default="", description="Put before each text.")
    client_options: Dict[str, Any] = Field(default_factory=dict, exclude=True, repr=False)
    # One call of the client is several requests, in flight together, of as many texts as the
    # server takes. The base class's 10 texts would be one small request at a time.
    embed_batch_size: int = Field(default=256, gt=0, le=2048, description="Texts a call.")
    # Without it the base class starts all of its calls at once, and their time runs together.
    num_workers: Optional[int] = Field(default=2, description="Asynchronous calls at a time.")

    _clients: Clients = PrivateAttr()

    def __init__(
        self,
        url: Optional[str] = None,
        *,
        client: Optional[Client] = None,
        async_client: Optional[AsyncClient] = None,
        model_name: str = "text_embedding",
        client_options: Optional[Mapping[str, Any]] = None,
        **keywords: Any,
    ) -> None:
        fields = {name: keywords.pop(name) for name in type(self).model_fields if name in keywords}
        options = {**(client_options or {}), **keywords}
        fields.update(url=url, model_name=options.pop("model", model_name), client_options=options)
        super().__init__(**fields)
        if url is not None:
            options = {**options, "model": self.model_name}
        self._clients = Clients(url, client, async_client, options)

    @classmethod
    def class_name(cls) -> str:
        """Name in LlamaIndex's serialized form."""
        return "BertronEmbedding"

    def close(self) -> None:
        """Close the Client opened for the url."""
        self._clients.close()

    async def aclose(self) -> None:
        """Close the Client and the AsyncClient opened for the url."""
        await self._clients.close_async()

    def __getstate__(self) -> Dict[str, Any]:
        self._clients.refuse_copy()  # the base class would drop it, with a line in the log
        return super().__getstate__()

    # What BaseEmbedding calls: a query, a text, or a batch of texts.

    def _get_query_embedding(self, query: str) -> List[float]:
        return self._embed([self.query_instruction + query])[0]

    def _get_text_embedding(self, text: str) -> List[float]:
        return self._embed([self.text_instruction + text])[0]

    def _get_text_embeddings(self, texts: List[str]) -> List[List[float]]:
        return self._embed([self.text_instruction + text for text in texts])

    async def _aget_query_embedding(self, query: str) -> List[float]:
        return (await self._embed_async([self.query_instruction + query]))[0]

    async def _aget_text_embedding(self, text: str) -> List[float]:
        return (await self._embed_async([self.text_instruction + text]))[0]

    async def _aget_text_embeddings(self, texts: List[str]) -> List[List[float]]:
        return await self._embed_async([self.text_instruction + text for text in texts])

    def _embed(self, texts: Sequence[str]) -> List[List[float]]:
        return self._clients.embed(texts, **self._options()).tolist()

    async def _embed_async(self, texts: Sequence[str]) -> List[List[float]]:
        return (await self._clients.embed_async(texts, **self._options())).tolist()

    def _options(self) -> Dict[str, Any]:
        return {
            "truncate": self.truncate,
            "normalize": self.normalize,
            "dimensions": self.dimensions,
        }
