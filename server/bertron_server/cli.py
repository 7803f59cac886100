"""The `bertron` command: finds the subcommand's module, and gives every failure one clear line."""

import argparse
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from bertron_server.errors import TritonServerError
from bertron_server.words import say

EXIT_FAILURE = 1
EXIT_USAGE = 2  # argparse's own
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells count


@dataclass(frozen=True)
class Command:
    """One subcommand.

    Attributes:
        module: Has ``add_arguments(parser)`` and ``run(args) -> int``.
        help: Its line in ``bertron --help``.
        extra: What brings the packages that it needs.
    """

    module: str
    help: str
    extra: str


COMMANDS = {
    "export": Command(
        "bertron_torchscript.export_command", "write a checkpoint into a model repository", "export"
    ),
    "serve": Command("bertron_server.serve", "run Triton server with a model repository", "server"),
    "encode": Command("bertron_server.encode", "turn a file of texts into embeddings", "encode"),
    "info": Command("bertron_server.info", "say what a running server serves", "encode"),
    "health": Command("bertron_server.health", "ask a running server for one embedding", "encode"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code."""
    _hold_standard_descriptors()
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Only the chosen subcommand is imported: the others may be absent, or slow to import.
    chosen = next((argument for argument in arguments if argument in COMMANDS), None)
    parser, subparsers = _parser()
    try:
        if chosen is None:
            parser.parse_args(arguments)  # --version, --help and mistakes end here
            parser.print_help()
            return EXIT_USAGE
        module = importlib.import_module(COMMANDS[chosen].module)
        module.add_arguments(subparsers[chosen])
        return int(module.run(parser.parse_args(arguments)))
    except ImportError as error:
        return _fail(chosen, _missing(chosen or "", error))
    except TritonServerError as error:
        return _fail(chosen, str(error))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _hold_standard_descriptors() -> None:
    """Let no file or socket become descriptor 0, 1 or 2, to which libraries write their errors."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed by whoever started this
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free: this one


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = argparse.ArgumentParser(
        prog="bertron", description="Serve BERT-family encoders on NVIDIA Triton Inference Server."
    )
    parser.add_argument(
        "--version", action="version", version=f"bertron {importlib.metadata.version('bertron')}"
    )
    added = parser.add_subparsers(title="commands", metavar="COMMAND")
    return parser, {
        name: added.add_parser(name, help=command.help, description=_sentence(command.help))
        for name, command in COMMANDS.items()
    }


def _sentence(help_line: str) -> str:
    return f"{help_line[0].upper()}{help_line[1:]}."


def _missing(chosen: str, error: ImportError) -> str:
    """Say what to install, or that this installation has no such command."""
    command = COMMANDS[chosen]
    if error.name is not None and command.module.startswith(error.name):
        return "this installation has no such command"
    return (
        f"it needs the package {error.name or error}; run `pip install 'bertron[{command.extra}]'`"
    )


def _fail(chosen: str | None, message: str) -> int:
    name = f"bertron {chosen}" if chosen else "bertron"
    say(sys.stderr, f"{name}: {message}\n")
    return EXIT_FAILURE


if __name__ == "__main__":
    sys.exit(main())
