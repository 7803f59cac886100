"""Whom to trust, and who we are."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

PathLike = Union[str, "os.PathLike[str]"]


@dataclass(frozen=True)
class Tls:
    """Certificates of a connection over TLS; the server's certificate is always verified.

    Attributes:
        root_certificates: PEM file of the authorities to trust; None: those of the system (over
            gRPC: those that come with gRPC).
        certificate: PEM file of this client's certificate chain, for servers that ask for one.
        key: PEM file of its private key, without a password.

    Raises:
        ValueError: A certificate without its key, or a key without its certificate.
    """

    root_certificates: Optional[PathLike] = None
    certificate: Optional[PathLike] = None
    key: Optional[PathLike] = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together, only one of them is given")

    def check_files(self) -> None:
        """Open each file once, because TLS itself does not name one that is missing.

        Raises:
            OSError: A file cannot be read.
        """
        for path in (self.root_certificates, self.certificate, self.key):
            if path is not None:
                Path(path).open("rb").close()

    def ssl_context(self) -> ssl.SSLContext:
        """Return what HTTP connections are wrapped with.

        Raises:
            OSError: A file cannot be read, or is not PEM.
        """
        context = ssl.create_default_context(cafile=self.root_certificates)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.certificate is not None:
            context.load_cert_chain(self.certificate, self.key)
        return context

    def grpc_credentials(self) -> Any:
        """Return what a gRPC channel is opened with.

        Raises:
            OSError: A file cannot be read.
        """
        import grpc  # here, because it is slow to import

        return grpc.ssl_channel_credentials(
            root_certificates=_read(self.root_certificates),
            private_key=_read(self.key),
            certificate_chain=_read(self.certificate),
        )


def _read(path: Optional[PathLike]) -> Optional[bytes]:
    return None if path is None else Path(path).read_bytes()
