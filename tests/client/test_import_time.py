"""Importing the client costs a program little."""

import statistics
import subprocess
import sys

MOST_S = 0.3  # of the processor's time; 0.1 is measured


def output_of(program):
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.split()


def test_importing_the_client_takes_little_beside_what_it_stands_on():
    program = """
import time, numpy, tritonclient
started = time.process_time()
import bertron_client
print(time.process_time() - started)
"""
    took_s = [float(output_of(program)[0]) for _ in range(5)]
    assert statistics.median(took_s) < MOST_S, took_s


def test_grpc_is_imported_for_grpc_only():
    program = """
import sys
from bertron_client import AsyncClient, Client
for kind in (Client, AsyncClient):
    for url in ("http://127.0.0.1:1", "https://127.0.0.1:1"):
        kind(url)
print("grpc" in sys.modules)
Client("grpc://127.0.0.1:1")
print("grpc" in sys.modules)
"""
    assert output_of(program) == ["False", "True"]
