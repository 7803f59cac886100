"""The real libraries, held to this machine: no telemetry, no model, no tokenizer is fetched."""

import ipaddress
import os
import sys

import pytest

# Read when haystack is imported; it would make a file in the home directory and report each run.
os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"

_outside = []


def _note_what_leaves_this_machine(event, arguments):
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event == "socket.connect" and isinstance(arguments[1], tuple):  # str: a Unix socket
        host = arguments[1][0]
    else:
        return
    if host not in (None, "localhost") and not _is_loopback(host):
        _outside.append((event, host))


def _is_loopback(host):
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


sys.addaudithook(_note_what_leaves_this_machine)


@pytest.fixture(autouse=True)
def _nothing_leaves_this_machine():
    _outside.clear()
    yield
    assert _outside == []
