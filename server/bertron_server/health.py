"""`bertron health`: one real inference. A server says ready long after its models have died."""

import argparse
import sys
import time

from bertron_server.connection import add_connection_arguments, open_client
from bertron_server.words import say

PROBE_TEXT = "is anybody there"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_connection_arguments(
        parser, url="http://127.0.0.1:8000", timeout_s=5, timeout_of="of the answer"
    )


def run(args: argparse.Namespace) -> int:
    """Embed one text; 0 where a good embedding comes back in time, 1 with the cause otherwise."""
    import numpy as np
    from bertron_client import BertronError

    started = time.monotonic()
    try:
        with open_client(args) as client:
            embedding = np.asarray(client.embed([PROBE_TEXT]))
    except (BertronError, ValueError, OSError) as error:  # no url, or no certificates
        return _unhealthy(args.url, str(error))
    elapsed_ms = (time.monotonic() - started) * 1000
    if embedding.ndim != 2 or embedding.shape[0] != 1 or embedding.shape[1] == 0:
        return _unhealthy(args.url, f"one text gave an answer of shape {embedding.shape}")
    if not np.isfinite(embedding).all():
        return _unhealthy(args.url, "the embedding is not finite")
    size = embedding.shape[1]
    say(sys.stdout, f"{args.url} healthy: {size} dimensions in {elapsed_ms:.1f} ms\n")
    return 0


def _unhealthy(url: str, cause: str) -> int:
    say(sys.stderr, f"{url} unhealthy: {cause}\n")
    return 1
