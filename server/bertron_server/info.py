"""`bertron info`: what a running server is, which model it serves, and what it has done so far."""

import argparse
import dataclasses
import json
import sys
from typing import Any


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
    parser.add_argument("--json", action="store_true", help="for programs, as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print what the server says; 0, or 1 with the cause where it says nothing."""
    from bertron_client import BertronError, Client

    try:
        with Client(args.url, model=args.model, timeout_s=args.timeout_s) as client:
            info = dataclasses.asdict(client.server_info())
            statistics = {
                name: dataclasses.asdict(model)
                for name, model in client.statistics().items()
                if name in (args.model, *info["models"])
            }
    except (BertronError, ValueError) as error:  # ValueError: a url that is none
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
