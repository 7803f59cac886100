"""What the commands that ask a running server have in common: where it is, and how to be let in."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bertron_client import Client

# In the environment and not an option: command lines are seen by everybody on the machine.
TOKEN_VARIABLE = "BERTRON_TOKEN"  # noqa: S105 - a variable's name


def add_connection_arguments(
    parser: argparse.ArgumentParser, *, url: str, timeout_s: float, timeout_of: str
) -> None:
    """Declare the options of ``open_client``.

    Args:
        parser: The command's.
        url: Default of ``--url``.
        timeout_s: Default of ``--timeout-s``.
        timeout_of: What that is the limit of.
    """
    parser.add_argument(
        "--url",
        default=url,
        help="http://, https://, grpc:// or grpcs://HOST:PORT (default: %(default)s)",
    )
    parser.add_argument("--model", default="text_embedding", help="default: %(default)s")
    parser.add_argument(
        "--timeout-s",
        type=float,
        default=timeout_s,
        metavar="S",
        help=f"{timeout_of} (default: %(default)s)",
    )
    parser.add_argument(
        "--root-certificates",
        type=Path,
        metavar="FILE",
        help="PEM file of the authorities to trust, for https and grpcs; default: the system's",
    )


def open_client(args: argparse.Namespace) -> "Client":
    """Return a client for what the user named; BERTRON_TOKEN is sent as a bearer token.

    Raises:
        ValueError: An option that no server could make right.
        OSError: The certificates cannot be read.
    """
    from bertron_client import Client, Tls

    roots: Path | None = args.root_certificates
    return Client(
        args.url,
        model=args.model,
        timeout_s=args.timeout_s,
        token=os.environ.get(TOKEN_VARIABLE) or None,
        tls=None if roots is None else Tls(root_certificates=roots),
    )
