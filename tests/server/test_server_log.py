from __future__ import annotations

import io
import os

from bertron_server.server_log import TAIL_LINES, ServerLog, decisive_lines, taken_socket

TRACEBACK = r"\n\nAt:\n  /m/1/model.py(1): <module>\n"
FAILED = (
    "2026-01-31T08:15:30Z E 7 model_lifecycle.cc:642] \"failed to load 'bert' version 1: Internal: "
    f"ModuleNotFoundError: No module named 'torch'{TRACEBACK}\""
)
HARMLESS = '2026-01-31T08:15:30Z E 7 server.cc:241] "CudaDriverHelper has not been initialized."'
OTHER = '2026-01-31T08:15:30Z E 7 backend_model.cc:692] "ERROR: Failed to create instance"'


def test_a_failed_model_is_what_decides() -> None:
    log = "\n".join([HARMLESS, OTHER, FAILED, FAILED, "error: creating server: failed to load all"])
    assert decisive_lines(log) == [
        "failed to load 'bert' version 1: Internal: ModuleNotFoundError: No module named 'torch'"
    ]


def test_without_a_failed_model_the_errors_decide_and_else_the_last_line() -> None:
    assert decisive_lines("\n".join([HARMLESS, OTHER])) == ["ERROR: Failed to create instance"]
    assert decisive_lines("a\nb\n\n") == ["b"]
    assert decisive_lines("") == []


def test_an_unknown_flag_is_found_above_the_help_that_follows_it() -> None:
    usage = "\n".join(["tritonserver: unrecognized option '--nope'", *["  --help"] * 500])
    assert decisive_lines(usage) == ["tritonserver: unrecognized option '--nope'"]
    assert usage.count("\n") < TAIL_LINES


def test_a_taken_port_is_found() -> None:
    line = "E 1 main.cc:257] \"failed to start HTTP: Socket '127.0.0.1:8000' already in use \""
    assert taken_socket(line) == "127.0.0.1:8000"
    assert taken_socket("all is well") is None


class ClosedPipe(io.StringIO):
    def write(self, _text: str) -> int:
        raise BrokenPipeError


def test_a_sink_that_is_gone_does_not_stop_the_reading() -> None:
    reader, writer = os.pipe()
    good = io.StringIO()
    log = ServerLog(os.fdopen(reader, "rb"), [ClosedPipe(), good])
    os.write(writer, b"one\n\xff two\n")
    os.close(writer)
    log.join(timeout_s=10)
    assert log.tail() == "one\n\ufffd two"
    assert log.tail(1) == "\ufffd two"
    assert good.getvalue() == "one\n\ufffd two\n"


def read_lines(lines: list[bytes]) -> str:
    reader, writer = os.pipe()
    kept = io.StringIO()
    log = ServerLog(os.fdopen(reader, "rb"), [kept])
    with os.fdopen(writer, "wb") as file:
        file.writelines(lines)
    log.join(timeout_s=10)
    assert log.tail() + "\n" == kept.getvalue()
    return kept.getvalue()


def test_a_line_that_comes_again_and_again_is_counted() -> None:
    flood = [b"[warn] no descriptors\n"] * 5000
    counted = "[warn] no descriptors\n" * 3 + "(4997 more of this line)\n"
    assert read_lines([*flood, b"well again\n", *flood]) == f"{counted}well again\n{counted}"


def test_a_line_that_comes_three_times_is_written_three_times() -> None:
    lines = [b"one\n"] * 3 + [b"two\n"] + [b"one\n"]
    assert read_lines(lines) == b"".join(lines).decode()
