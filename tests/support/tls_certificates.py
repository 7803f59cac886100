"""Certificates for tests, right and wrong, as files."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, replace
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Identity:
    """A certificate and its key; for a server, also whose clients it lets in."""

    certificate: Path
    key: Path
    client_roots: Path | None = None  # clients must show a certificate signed by these


class Certificates:
    """One authority that clients know and one they do not, and what both have signed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        known, unknown = trustme.CA(), trustme.CA()
        self.roots = self._write("roots.pem", known.cert_pem)
        self.other_roots = self._write("other_roots.pem", unknown.cert_pem)
        self.server = self._issue(known, "server", "127.0.0.1", "localhost")
        self.mutual_server = replace(self.server, client_roots=self.roots)
        self.server_of_another_host = self._issue(known, "elsewhere", "elsewhere.example")
        self.server_of_an_unknown_authority = self._issue(unknown, "unknown", "127.0.0.1")
        yesterday = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
        self.expired_server = self._issue(known, "expired", "127.0.0.1", not_after=yesterday)
        self.client = self._issue(known, "client", "client@example.org")
        self.client_of_an_unknown_authority = self._issue(unknown, "stranger", "stranger@x.example")

    def _issue(self, authority: trustme.CA, name: str, *names: str, **options) -> Identity:
        issued = authority.issue_cert(*names, **options)
        chain = b"".join(pem.bytes() for pem in issued.cert_chain_pems)
        return Identity(
            self._write(f"{name}.pem", trustme.Blob(chain)),
            self._write(f"{name}.key", issued.private_key_pem),
        )

    def _write(self, name: str, blob: trustme.Blob) -> Path:
        path = self._folder / name
        blob.write_to_path(path)
        return path
