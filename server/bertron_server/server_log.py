"""What tritonserver writes: kept, passed on, and searched for the line that decides."""

import collections
import re
import threading
from collections.abc import Iterable
from typing import IO, TextIO

# "2026-01-31T08:15:30Z E 4463 server.cc:241] "message"", the message with its newlines escaped
_ERROR_LINE = re.compile(r'^\S+ E \d+ [\w.]+:\d+\] "(?P<message>.*)"\s*$')
# Before the log is set up, and after it has ended.
_PLAIN_ERROR = re.compile(r"^error: |: unrecognized option|^Signal \((?:6|7|8|11)\) received")
_FAILED_TO_LOAD = re.compile(r"^failed to load '[^']+' version \d+: ")
_PORT_TAKEN = re.compile(r"Socket '(?P<socket>[^']+)' already in use")

# Errors by their letter only: every CPU machine logs them.
_HARMLESS = ("CudaDriverHelper has not been initialized", "unable to create stream")

MOST_ALIKE = 3  # a server out of descriptors writes the same line 200,000 times a second
TAIL_LINES = 1000  # a mistaken flag is answered with 500 lines of help below the one that counts


class ServerLog:
    """Reads the server's output in a thread: the tail into memory, every line to the sinks."""

    def __init__(self, source: IO[bytes], sinks: Iterable[TextIO]) -> None:
        """Start to read ``source`` until its end, and write each line to every sink."""
        self._lines: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)
        self._sinks = list(sinks)
        self._thread = threading.Thread(
            target=self._read, args=(source,), name="bertron-server-log", daemon=True
        )
        self._thread.start()

    def _read(self, source: IO[bytes]) -> None:
        before, alike = b"", 0
        with source:
            for raw in source:
                if raw == before:
                    alike += 1
                else:
                    self._write_left_out(alike)
                    before, alike = raw, 1
                if alike <= MOST_ALIKE:
                    self._write(raw.decode("utf-8", errors="replace"))
            self._write_left_out(alike)

    def _write_left_out(self, alike: int) -> None:
        if alike > MOST_ALIKE:
            self._write(f"({alike - MOST_ALIKE} more of this line)\n")

    def _write(self, line: str) -> None:
        self._lines.append(line.rstrip("\n"))
        for sink in list(self._sinks):
            try:
                sink.write(line)
                sink.flush()
            except (OSError, ValueError):  # closed: the server must not stop for its log
                self._sinks.remove(sink)

    def tail(self, lines: int = TAIL_LINES) -> str:
        """Return the last lines, oldest first."""
        return "\n".join(list(self._lines)[-lines:])

    def join(self, timeout_s: float) -> None:
        """Wait until everything that the server wrote has been read."""
        self._thread.join(timeout_s)


def taken_socket(log: str) -> str | None:
    """Return "address:port" where the log says that another process has it."""
    match = _PORT_TAKEN.search(log)
    return match["socket"] if match else None


def decisive_lines(log: str, limit: int = 3) -> list[str]:
    """Return what a person has to read of a failed start, unescaped.

    For each failed model its error; where no model failed, the errors that are not harmless;
    where there is none, the last line.
    """
    lines = [line for line in log.splitlines() if line.strip()]
    errors = [match["message"] for line in lines if (match := _ERROR_LINE.match(line))]
    errors = [message for message in errors if not message.startswith(_HARMLESS)]
    errors += [line for line in lines if _PLAIN_ERROR.search(line)]
    failed_models = [message for message in errors if _FAILED_TO_LOAD.match(message)]
    chosen = failed_models or errors or lines[-1:]
    return [_first_part(message) for message in dict.fromkeys(chosen)][:limit]


def _first_part(message: str) -> str:
    """The message without the traceback that the Python backend appends to it."""
    return message.replace("\\n", "\n").partition("\n\nAt:\n")[0].strip()
