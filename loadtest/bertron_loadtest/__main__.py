"""Load tests that judge: ``python -m bertron_loadtest COMMAND``."""

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "run": ("run", "put a server under load, report and judge"),
    "suite": ("suite", "find the server's capacity, then judge it below that and beyond"),
    "report": ("report_command", "report and judge a saved run anew"),
    "compare": ("compare", "show two saved runs side by side"),
    "matrix": ("matrix", "bert-as-service's published matrix, cell by cell"),
    "peers": ("peers", "the same load on Bertron and on infinity-emb, in turns"),
    "tune": ("tune", "try the server's settings under load and write down the best"),
    "cross-check": ("cross_check", "NVIDIA's perf_analyzer beside our own load"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(
        prog="python -m bertron_loadtest", description=__doc__.partition(":")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    modules = {}
    for name, (module_name, help_text) in COMMANDS.items():
        command = commands.add_parser(name, help=help_text, description=help_text)
        if argv and argv[0] == name:  # the others' imports would cost a second
            modules[name] = importlib.import_module(f"bertron_loadtest.{module_name}")
            modules[name].add_arguments(command)
    args = parser.parse_args(argv)
    try:
        return int(modules[args.command].main(args))
    except (OSError, ValueError, RuntimeError) as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("interrupted") + 129  # 130, as shells count an interrupt


def _fail(message: str) -> int:
    sys.stderr.write(f"bertron_loadtest: {message}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
