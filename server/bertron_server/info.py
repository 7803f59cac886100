"""`bertron info`: what a running server is, which model it serves, and what it has done so far."""

import argparse
import dataclasses
import json
import sys
from typing import Any

from bertron_server.connection import add_connection_arguments, open_client


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
        sys.stderr.write(f"bertron info: {error}\n")
        return 1
    if args.json:
        sys.stdout.write(json.dumps({"server": info, "statistics": statistics}, indent=2) + "\n")
    else:
        sys.stdout.write(_as_text(info, statistics))
    return 0


def _as_text(info: dict[str, Any], statistics: dict[str, dict[str, Any]]) -> str:
    width = max(map(len, info))
    lines = [f"{name:{width}}  {_shown(value)}" for name, value in info.items()]
    columns = "requests  failed    texts  batches  queue  compute"
    lines += ["", f"{'since its start':{width}}  {columns}"]
    lines += [
        f"{name:{width}}  {model['requests_succeeded']:8}{model['requests_failed']:8}"
        f"{model['inferences']:9}{model['executions']:9}"
        f"{model['queue_ms']:5.1f}ms{model['compute_ms']:7.1f}ms"
        for name, model in statistics.items()
    ]
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
