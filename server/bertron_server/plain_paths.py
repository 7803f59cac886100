"""Paths that Triton server's Python backend can take.

It starts a model's process by a line of shell in which paths stand unquoted, and tells it of them
in ASCII: with a space or an umlaut in one, no model is ever ready. A link leads to such a path.
"""

import re
import shutil
import tempfile
from pathlib import Path

from bertron_server.errors import TritonServerError

PLAIN = re.compile(r"[A-Za-z0-9/._+@%=:,-]+")
LINK_DIRECTORIES = ("/tmp", "/var/tmp")  # noqa: S108  where TMPDIR's own path is not plain


class PlainPaths:
    """Links to what has no plain path, for as long as a server runs."""

    def __init__(self) -> None:
        self._directory: Path | None = None
        self._links: dict[Path, Path] = {}

    def of(self, path: Path) -> Path:
        """Return ``path``, absolute, or a link that leads there.

        Raises:
            TritonServerError: There is no place for a link.
        """
        path = path.absolute()
        if PLAIN.fullmatch(str(path)):
            return path
        if path not in self._links:
            self._links[path] = self._new_link(path)
        return self._links[path]

    def remove(self) -> None:
        """Remove the links, not what they lead to."""
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
        self._directory = None
        self._links.clear()

    def _new_link(self, path: Path) -> Path:
        try:
            if self._directory is None:
                places = (tempfile.gettempdir(), *LINK_DIRECTORIES)
                place = next(name for name in places if PLAIN.fullmatch(name))
                self._directory = Path(tempfile.mkdtemp(prefix="bertron-", dir=place))
            link = self._directory / str(len(self._links))
            link.symlink_to(path)
        except OSError as error:
            raise TritonServerError(
                f"{path} has characters that Triton server's Python backend cannot take, and no "
                f"link to it can be made: {error}"
            ) from error
        return link
