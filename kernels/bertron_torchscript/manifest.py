"""The manifest beside an exported file: what it is, where it came from, how to tell it is whole.

Imports no torch: the server's banner and its tests read manifests too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

from bertron_torchscript.errors import ManifestError

FILE_NAME = "manifest.json"
FORMAT = 4  # raised when what was exported before must be exported again


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the exported model takes, each with its unit in its name."""

    max_tokens_per_text: int


@dataclasses.dataclass(frozen=True)
class Verification:
    """How the saved file compared with transformers in float32, on real texts."""

    texts: int
    min_cosine: float
    required_cosine: float


@dataclasses.dataclass(frozen=True)
class Manifest:
    """One export.

    Attributes:
        name: What the user called the source: a directory's name or a hub name.
        architecture: ``bert``, ``roberta`` or ``distilbert``.
        dtype: Of the products' weights in the file: ``float32``, ``bfloat16``,
            ``float16`` or ``int8``.
        pooling: ``mean``, ``max``, ``mean-max``, ``cls`` or ``last``.
        num_layers: Layers that are computed; those above the pooling layer are pruned.
        type_vocab_size: Token types the model knows; 0 where it has none (DistilBERT).
        source_sha256: Hash of each file that was read, by its name.
        files_sha256: Hash of each file that was written, by its name.
        versions: Of Bertron and the libraries that made the file.
    """

    name: str
    architecture: str
    dtype: str
    pooling: str
    normalize: bool
    num_layers: int
    pruned_layers: int
    hidden_size: int
    embedding_size: int
    vocab_size: int
    type_vocab_size: int
    limits: Limits
    verification: Verification
    source_sha256: dict[str, str]
    files_sha256: dict[str, str]
    versions: dict[str, str]
    format: int = FORMAT

    def write(self, directory: Path) -> None:
        """Write ``manifest.json`` into ``directory``."""
        text = json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True)
        (directory / FILE_NAME).write_text(text + "\n", encoding="utf-8")


def sha256_of(path: Path) -> str:
    """The file's SHA-256, as lower-case hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest in ``directory``.

    Raises:
        ManifestError: It is missing, not JSON, or of another format.
    """
    path = directory / FILE_NAME
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ManifestError(f"{path} is missing: run `bertron export` first") from None
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path} cannot be read: {error}") from error
    found = fields.get("format") if isinstance(fields, dict) else None
    if found != FORMAT:
        raise ManifestError(
            f"{path} has format {found}, this version reads {FORMAT}: run `bertron export` again"
        )
    try:
        fields["limits"] = Limits(**fields["limits"])
        fields["verification"] = Verification(**fields["verification"])
        return Manifest(**fields)
    except (KeyError, TypeError) as error:
        raise ManifestError(
            f"{path} does not have the expected fields ({error}): run `bertron export` again"
        ) from error


def checked_file(directory: Path, file_name: str) -> tuple[Path, Manifest]:
    """The path of ``file_name`` in ``directory``, after comparing its hash with the manifest's.

    Raises:
        ManifestError: The manifest or the file is missing, or the hash differs.
    """
    manifest = read_manifest(directory)
    path = directory / file_name
    expected = manifest.files_sha256.get(file_name)
    if expected is None or not path.is_file():
        raise ManifestError(f"{path} is missing: run `bertron export` first")
    found = sha256_of(path)
    if found != expected:
        raise ManifestError(
            f"{path} has sha256 {found}, its manifest says {expected}: the file is damaged or "
            "from another export; run `bertron export` again"
        )
    return path, manifest
