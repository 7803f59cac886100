"""A JSON file of a checkpoint, read; what is wrong with it is an ExportError that names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bertron_torchscript.errors import ExportError


def read_json(path: Path, kind: type = dict) -> Any:
    """The value in ``path``.

    Raises:
        ExportError: The file is missing, cannot be read, or holds another kind of value.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExportError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(value, kind):
        raise ExportError(f"{path}: expected a JSON {kind.__name__}, got {type(value).__name__}")
    return value
