"""What a command says. It neither ends the command nor decides its exit code.

Whoever started it may have closed a stream (`>&-`), may have let its disk fill up, and may stop
reading at any time.
"""

import contextlib
import os
from typing import Any, TextIO


def say(stream: TextIO | None, text: str) -> bool:
    """Write ``text`` at once; return whether the stream took it.

    Args:
        stream: ``sys.stdout`` or ``sys.stderr``; None where it was closed before the start. One
            that fails leads nowhere from then on.
        text: With its newlines.
    """
    if stream is None:
        return False
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        _lead_nowhere(stream)
        return False
    except ValueError:  # closed in the meantime, or without a code for one of the characters
        return False
    return True


class Words:
    """``say`` for what wants a stream of its own to write to, as a progress bar does."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write ``text`` if somebody reads it."""
        say(self._stream, text)

    def flush(self) -> None:
        """Do nothing: ``write`` waits for nothing."""

    def __getattr__(self, name: str) -> Any:
        # The terminal's width and its encoding.
        return getattr(self._stream, name)


def _lead_nowhere(stream: TextIO) -> None:
    # What failed is still in the stream's buffer. Python writes it again when it exits, and would
    # end with 120 if that failed too.
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
