"""`bertron info`: what a running server is, which model it serves, and what it has done so far."""

import argparse
import dataclasses
import json
import sys
from typing import Any

from bertron_server.connection import add_connection_arguments, open_client
from bertron_server.words import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_connection_arguments(
        parser, url="http://127.0.0.1:8000", timeout_s=5, timeout_of="of all questions together"
    )
    parser.add_argument("--json", action="store_true", help="for programs, as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print what the server says; 0, or 1 with the cause where it says nothing."""
    from bertron_client import BertronError

    try:
        with open_client(args) as client:
            info = dataclasses.asdict(client.server_info())
            statistics = {
                name: dataclasses.asdict(model)
                for name, model in client.statistics().items()
                if name in (args.model, *info["models"])
            }
    except (BertronError, ValueError, OSError) as error:  # no url, or no certificates
        return _fail(str(error))
    if args.json:
        text = json.dumps({"server": info, "statistics": statistics}, indent=2) + "\n"
    else:
        text = _as_text(info, statistics)
    return 0 if say(sys.stdout, text) else _fail("stdout is closed, full or no longer read")


def _fail(message: str) -> int:
    say(sys.stderr, f"bertron info: {message}\n")
    return 1


def _as_text(info: dict[str, Any], statistics: dict[str, dict[str, Any]]) -> str:
    width = max(map(len, [*info, *statistics]))
    lines = [f"{name:{width}}  {_shown(value)}" for name, value in info.items()]
    rows = [("requests", "failed", "texts", "batches", "queue", "compute")]
    rows += [
        (
            str(model["requests_succeeded"]),
            str(model["requests_failed"]),
            str(model["inferences"]),
            str(model["executions"]),
            f"{model['queue_ms']:.1f}ms",
            f"{model['compute_ms']:.1f}ms",
        )
        for model in statistics.values()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines.append("")
    for name, row in zip(["since its start", *statistics], rows, strict=True):
        cells = [f"{cell:>{size}}" for cell, size in zip(row, widths, strict=True)]
        lines.append("  ".join([f"{name:{width}}", *cells]))
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
