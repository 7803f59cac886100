"""`bertron health`: one real inference. A server says ready long after its models have died."""

import argparse
import sys
import time

PROBE_TEXT = "is anybody there"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--url",
        default="http://127.0.0.1:8000",
        help="http://HOST:PORT or grpc://HOST:PORT (default: %(default)s)",
    )
    parser.add_argument("--model", default="text_embedding", help="default: %(default)s")
    parser.add_argument(
        "--timeout-s", type=float, default=5, metavar="S", help="default: %(default)s"
    )


def run(args: argparse.Namespace) -> int:
    """Embed one text; 0 where a good embedding comes back in time, 1 with the cause otherwise."""
    import numpy as np
    from bertron_client import BertronError, Client

    started = time.monotonic()
    try:
        with Client(args.url, model=args.model, timeout_s=args.timeout_s) as client:
            embedding = np.asarray(client.embed([PROBE_TEXT]))
    except (BertronError, ValueError) as error:  # ValueError: a url that is none
        return _unhealthy(args.url, str(error))
    elapsed_ms = (time.monotonic() - started) * 1000
    if embedding.ndim != 2 or embedding.shape[0] != 1 or embedding.shape[1] == 0:
        return _unhealthy(args.url, f"one text gave an answer of shape {embedding.shape}")
    if not np.isfinite(embedding).all():
        return _unhealthy(args.url, "the embedding is not finite")
    sys.stdout.write(
        f"{args.url} healthy: {embedding.shape[1]} dimensions in {elapsed_ms:.1f} ms\n"
    )
    return 0


def _unhealthy(url: str, cause: str) -> int:
    sys.stderr.write(f"{url} unhealthy: {cause}\n")
    return 1
