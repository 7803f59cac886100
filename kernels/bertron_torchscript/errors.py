"""What can go wrong between a checkpoint and a served model."""


class ExportError(Exception):
    """The checkpoint cannot be exported; the message names the file and the cause, in one line."""


class ManifestError(Exception):
    """What lies in the model repository is not what an export wrote there."""


def first_line(error: Exception) -> str:
    """What another library's error says, in one line; its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def shortened(value: object, longest: int = 60) -> str:
    """``value`` as Python writes it, in one line, cut where it has more than ``longest``."""
    if isinstance(value, str) and len(value) > longest:
        return f"{value[:longest]!r}..."
    written = repr(value)
    return written if len(written) <= longest else f"{written[:longest]}..."
