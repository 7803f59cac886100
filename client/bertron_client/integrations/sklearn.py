"""Bertron as a scikit-learn transformer of texts."""

from __future__ import annotations

from typing import Any, Dict, Iterable, Mapping, Optional

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin, clone

from .. import Client
from .._vectors import checked_dimensions
from ._clients import Clients


class BertronVectorizer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Texts to sentence embeddings, in the place of a CountVectorizer.

        make_pipeline(BertronVectorizer("grpc://127.0.0.1:8001"), LogisticRegression())

    It learns nothing: ``fit`` asks the server for the size of its vectors, and ``transform`` works
    without it. Errors are the client's. A pickle holds the parameters and no connection.

    Args:
        url: Of the server, as for Client.
        client: An open Client instead of a url; it stays the caller's to close, clones share it,
            and it cannot be pickled, so ``n_jobs`` above 1 wants a url.
        truncate: As for ``Client.embed``.
        normalize: As for ``Client.embed``.
        dimensions: As for ``Client.embed``.
        timeout_s: Limit of one ``transform``; None takes the client's.
        client_options: Client's other keyword arguments, with a url. They show in the estimator's
            repr: where that matters, give a client rather than a token.
    """

    def __init__(
        self,
        url: Optional[str] = None,
        *,
        client: Optional[Client] = None,
        truncate: str = "right",
        normalize: Optional[bool] = None,
        dimensions: Optional[int] = None,
        timeout_s: Optional[float] = None,
        client_options: Optional[Mapping[str, Any]] = None,
    ) -> None:
        self.url = url
        self.client = client
        self.truncate = truncate
        self.normalize = normalize
        self.dimensions = dimensions
        self.timeout_s = timeout_s
        self.client_options = client_options

    # The texts are X, the name under which scikit-learn hands them on.

    def fit(self, X: Iterable[str], y: Any = None) -> BertronVectorizer:  # noqa: ARG002, N803
        """Ask the server how many components its vectors have; the texts are not read.

        Raises:
            BertronError: As ``Client.server_info``.
            TypeError: Both a url and a client, or neither.
            ValueError: ``dimensions`` is not between 1 and the vectors' size, or as Client.
        """
        info = self._opened().client.server_info(timeout_s=self.timeout_s)
        size = info.embedding_size
        if self.dimensions is not None:
            size = checked_dimensions(self.dimensions, size)
        self._n_features_out = size  # what the mixin makes names of
        return self

    def transform(self, X: Iterable[str]) -> NDArray[np.float32]:  # noqa: N803
        """Return one row for each text, [n, E] float32.

        Args:
            X: The texts, as for ``Client.embed``: a list, an array, a column of a table.

        Raises:
            BertronError: As ``Client.embed``.
            TypeError: ``X`` is a single str or a table.
        """
        embeddings = self._opened().embed(
            X,
            truncate=self.truncate,
            normalize=self.normalize,
            dimensions=self.dimensions,
            timeout_s=self.timeout_s,
        )
        return np.asarray(embeddings)

    def close(self) -> None:
        """Close the Client opened for the url; a later call opens another."""
        clients = self.__dict__.pop("_clients", None)
        if clients is not None:
            clients.close()

    def set_params(self, **params: Any) -> BertronVectorizer:
        """Set parameters; a url or options among them take effect at once."""
        self.close()
        return super().set_params(**params)  # type: ignore[no-any-return]

    def _opened(self) -> Clients:
        # Not in the constructor, which in scikit-learn only notes its parameters.
        clients = self.__dict__.get("_clients")
        if clients is None:
            clients = Clients(self.url, self.client, options=self.client_options)
            self._clients = clients
        return clients

    def __sklearn_clone__(self) -> BertronVectorizer:
        params = self.get_params(deep=False)
        client = params.pop("client")
        copies = {name: clone(value, safe=False) for name, value in params.items()}
        return type(self)(client=client, **copies)

    def __getstate__(self) -> Dict[str, Any]:
        if self.client is not None:
            raise TypeError("a client cannot be pickled; give url and client_options instead")
        state = dict(super().__getstate__())
        state.pop("_clients", None)
        return state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []  # float32, whatever came
        tags.requires_fit = False
        return tags
