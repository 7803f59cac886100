"""Bertron as Haystack's embedders: of a text, and of documents."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from typing import Any, Callable, Dict, List, Optional, Type, TypeVar, Union

from haystack import Document, component, default_from_dict, default_to_dict
from haystack.core.errors import SerializationError
from haystack.utils import Secret

from .. import AsyncClient, Client, Embeddings, RetryPolicy, Tls
from ._clients import Clients

_Self = TypeVar("_Self", bound="_Embedder")
# Client's options that are objects, which a pipeline's file holds as mappings.
_OBJECTS: Dict[str, Callable[..., Any]] = {"retry": RetryPolicy, "tls": Tls}


class _Embedder:
    """What both have: how they reach the server, and how a pipeline's file says it."""

    def __init__(
        self,
        url: Optional[str],
        client: Optional[Client],
        async_client: Optional[AsyncClient],
        token: Union[Secret, str, None],
        client_options: Dict[str, Any],
        **init_parameters: Any,
    ) -> None:
        self._url = url
        self._client = client
        self._async_client = async_client
        self._token = Secret.from_token(token) if isinstance(token, str) else token
        self._client_options = client_options
        self._init_parameters = init_parameters  # of the subclass, by name
        self._clients: Optional[Clients] = None

    def warm_up(self) -> None:
        """Open the clients; nothing is sent. ``run`` does it too.

        Raises:
            TypeError: Both a url and a client, or neither.
            ValueError: As Client.
        """
        self._opened()

    def close(self) -> None:
        """Close the Client opened for the url; a later run opens another."""
        if self._clients is not None:
            self._clients.close()
            self._clients = None

    async def close_async(self) -> None:
        """Close the Client and the AsyncClient opened for the url."""
        if self._clients is not None:
            clients, self._clients = self._clients, None
            await clients.close_async()

    def to_dict(self) -> Dict[str, Any]:
        """Return what ``from_dict`` makes an equal component of.

        Raises:
            SerializationError: It was made with a client, which no file can hold.
            ValueError: The token is a str; ``Secret.from_env_var`` can be written.
        """
        if self._url is None:
            raise SerializationError("a client cannot be serialized; give url and its options")
        options = {name: _plain(value) for name, value in self._client_options.items()}
        return default_to_dict(
            self, url=self._url, token=self._token, **self._init_parameters, **options
        )

    @classmethod
    def from_dict(cls: Type[_Self], data: Dict[str, Any]) -> _Self:
        """Make the component that ``to_dict`` described."""
        parameters = dict(data.get("init_parameters", {}))
        for name, kind in _OBJECTS.items():
            if isinstance(parameters.get(name), dict):
                parameters[name] = kind(**parameters[name])
        return default_from_dict(cls, {**data, "init_parameters": parameters})

    def _opened(self) -> Clients:
        if self._clients is None:
            options = dict(self._client_options)
            if self._token is not None:
                options["token"] = self._token.resolve_value()
            self._clients = Clients(self._url, self._client, self._async_client, options)
        return self._clients

    def _embed_options(self) -> Dict[str, Any]:
        names = ("truncate", "normalize", "dimensions")
        return {name: self._init_parameters[name] for name in names}

    def _framed(self, text: str) -> str:
        return f"{self._init_parameters['prefix']}{text}{self._init_parameters['suffix']}"


def _plain(option: Any) -> Any:
    if isinstance(option, (RetryPolicy, Tls)):
        return {name: _plain(value) for name, value in asdict(option).items()}
    return os.fspath(option) if isinstance(option, os.PathLike) else option


@component
class BertronTextEmbedder(_Embedder):
    """Embeds a text, such as a query.

        pipeline.add_component("embedder", BertronTextEmbedder("grpc://127.0.0.1:8001"))

    Args:
        url: Of the server, as for Client.
        client: An open Client instead of a url; it stays the caller's to close.
        async_client: An open AsyncClient, likewise; without it, ``client`` is used in a thread.
        token: Bearer token; only a ``Secret`` from an environment variable can be serialized.
        prefix: Put before the text.
        suffix: Put after the text.
        truncate: As for ``Client.embed``.
        normalize: As for ``Client.embed``.
        dimensions: As for ``Client.embed``.
        client_options: Client's other keyword arguments, with a url.
    """

    def __init__(
        self,
        url: Optional[str] = None,
        *,
        client: Optional[Client] = None,
        async_client: Optional[AsyncClient] = None,
        token: Union[Secret, str, None] = None,
        prefix: str = "",
        suffix: str = "",
        truncate: str = "right",
        normalize: Optional[bool] = None,
        dimensions: Optional[int] = None,
        **client_options: Any,
    ) -> None:
        _Embedder.__init__(  # super() knows the class as it was before @component
            self,
            url,
            client,
            async_client,
            token,
            client_options,
            prefix=prefix,
            suffix=suffix,
            truncate=truncate,
            normalize=normalize,
            dimensions=dimensions,
        )

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    def run(self, text: str) -> Dict[str, Any]:
        """Return ``embedding``, the vector of ``text``, and ``meta``, what reading it took.

        Raises:
            BertronError: As ``Client.embed``.
            TypeError: ``text`` is not a str.
        """
        return self._result(self._opened().embed([self._prepared(text)], **self._embed_options()))

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    async def run_async(self, text: str) -> Dict[str, Any]:
        """As ``run``, through an AsyncClient."""
        texts = [self._prepared(text)]
        return self._result(await self._opened().embed_async(texts, **self._embed_options()))

    def _prepared(self, text: str) -> str:
        if not isinstance(text, str):
            raise TypeError(
                f"text is {type(text).__name__}, a str is wanted; documents are for "
                "BertronDocumentEmbedder"
            )
        return self._framed(text)

    def _result(self, embeddings: Embeddings) -> Dict[str, Any]:
        return {"embedding": embeddings.tolist()[0], "meta": _meta(embeddings)}


@component
class BertronDocumentEmbedder(_Embedder):
    """Embeds documents, each with the metadata that is asked for.

        pipeline.add_component("embedder", BertronDocumentEmbedder("grpc://127.0.0.1:8001"))

    Args:
        url: Of the server, as for Client.
        client: An open Client instead of a url; it stays the caller's to close.
        async_client: An open AsyncClient, likewise; without it, ``client`` is used in a thread.
        token: Bearer token; only a ``Secret`` from an environment variable can be serialized.
        prefix: Put before each text.
        suffix: Put after each text.
        meta_fields_to_embed: Fields of the metadata, put before a document's content.
        embedding_separator: Between those fields and the content.
        truncate: As for ``Client.embed``.
        normalize: As for ``Client.embed``.
        dimensions: As for ``Client.embed``.
        progress_bar: Whether to show one.
        client_options: Client's other keyword arguments, with a url. ``timeout_s`` is for one
            run: raise it for many documents.
    """

    def __init__(
        self,
        url: Optional[str] = None,
        *,
        client: Optional[Client] = None,
        async_client: Optional[AsyncClient] = None,
        token: Union[Secret, str, None] = None,
        prefix: str = "",
        suffix: str = "",
        meta_fields_to_embed: Optional[List[str]] = None,
        embedding_separator: str = "\n",
        truncate: str = "right",
        normalize: Optional[bool] = None,
        dimensions: Optional[int] = None,
        progress_bar: bool = False,
        **client_options: Any,
    ) -> None:
        self._meta_fields = list(meta_fields_to_embed or [])
        self._separator = embedding_separator
        self._progress_bar = progress_bar
        _Embedder.__init__(  # super() knows the class as it was before @component
            self,
            url,
            client,
            async_client,
            token,
            client_options,
            prefix=prefix,
            suffix=suffix,
            meta_fields_to_embed=self._meta_fields,
            embedding_separator=embedding_separator,
            truncate=truncate,
            normalize=normalize,
            dimensions=dimensions,
            progress_bar=progress_bar,
        )

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    def run(self, documents: List[Document]) -> Dict[str, Any]:
        """Return copies of ``documents`` with embeddings, and ``meta``, what reading them took.

        Raises:
            BertronError: As ``Client.embed``.
            TypeError: ``documents`` is not a list of Document.
        """
        texts = self._texts(documents)
        embeddings = self._opened().embed(
            texts, progress=self._progress_bar, **self._embed_options()
        )
        return _with_embeddings(documents, embeddings)

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    async def run_async(self, documents: List[Document]) -> Dict[str, Any]:
        """As ``run``, through an AsyncClient."""
        texts = self._texts(documents)
        embeddings = await self._opened().embed_async(
            texts, progress=self._progress_bar, **self._embed_options()
        )
        return _with_embeddings(documents, embeddings)

    def _texts(self, documents: List[Document]) -> List[str]:
        if not isinstance(documents, list) or not all(isinstance(d, Document) for d in documents):
            raise TypeError(
                "documents is not a list of Document; a text is for BertronTextEmbedder"
            )
        return [self._framed(self._separator.join(self._parts(d))) for d in documents]

    def _parts(self, document: Document) -> List[str]:
        fields = (document.meta.get(name) for name in self._meta_fields)
        return [*(str(field) for field in fields if field is not None), document.content or ""]


def _with_embeddings(documents: List[Document], embeddings: Embeddings) -> Dict[str, Any]:
    rows = embeddings.tolist()
    embedded = [replace(document, embedding=row) for document, row in zip(documents, rows)]
    return {"documents": embedded, "meta": _meta(embeddings)}


def _meta(embeddings: Embeddings) -> Dict[str, Any]:
    tokens = int(embeddings.token_counts.sum())
    return {
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},  # the names of other embedders
        "truncated": int(embeddings.truncated.sum()),  # texts that were cut
    }
