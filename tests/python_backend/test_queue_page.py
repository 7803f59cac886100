"""The page that encoders write on: whose line is whose."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bertron_backend.queue_page import Page, make_page
from bertron_backend.shared_files import make_private


@pytest.fixture
def page(tmp_path):
    make_private(tmp_path / "queues")
    _, _, descriptor = make_page(tmp_path / "queues")
    made = Page(descriptor)
    yield made
    made.close()


def state_of(pid) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_line_is_its_processes_as_long_as_that_lives(page):
    line = page.claim()
    assert line.pid == os.getpid()
    assert not page.remove_dead()
    assert page.lines() == [line]


def test_a_killed_process_has_no_line_also_while_nobody_asks_for_it(page):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    line = page.claim()
    line.pid = child.pid
    assert not page.remove_dead()
    child.kill()
    deadline = time.monotonic() + 10
    while state_of(child.pid) != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert page.remove_dead()
    assert page.lines() == []
    child.communicate()
    line.pid = child.pid  # and when somebody has
    assert page.remove_dead()
