from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bertron_server.words import Words, say

# Says two lines, of which nobody reads the second, and ends well.
SAY_TWICE = """
import sys
from bertron_server.words import say
stream = sys.{stream}
print(say(stream, "first\\n"), file=sys.{other})
sys.stdin.read()
print(say(stream, "second\\n"), say(stream, "third\\n"), file=sys.{other}, flush=True)
"""


def test_what_is_said_is_written_at_once() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8")
    assert say(stream, "ready\n")
    assert raw.getvalue() == b"ready\n"


def test_a_stream_that_was_never_there_takes_nothing() -> None:
    assert not say(None, "ready\n")
    Words(None).write("ready\n")


def test_a_stream_that_was_closed_takes_nothing() -> None:
    stream = io.StringIO()
    stream.close()
    assert not say(stream, "ready\n")


def test_a_character_without_a_code_does_not_silence_what_follows(tmp_path: Path) -> None:
    path = tmp_path / "said"
    with path.open("w", encoding="ascii") as stream:
        assert not say(stream, "é\n")
        assert say(stream, "ready\n")
    assert path.read_text() == "ready\n"


@pytest.mark.parametrize(("stream", "other"), [("stdout", "stderr"), ("stderr", "stdout")])
def test_a_reader_who_goes_away_misses_the_rest(stream: str, other: str) -> None:
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    code = SAY_TWICE.format(stream=stream, other=other)
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as process:
        heard, kept = getattr(process, stream), getattr(process, other)
        assert heard.readline() == "first\n"
        heard.close()
        process.stdin.close()
        assert kept.read() == "True\nFalse True\n"  # the third line leads nowhere
        assert process.wait(timeout=30) == 0


def test_a_progress_bar_finds_the_terminals_width() -> None:
    leader, terminal = os.openpty()
    with os.fdopen(leader, "rb"), os.fdopen(terminal, "w") as stream:
        assert Words(stream).isatty()
        assert Words(stream).fileno() == stream.fileno()
