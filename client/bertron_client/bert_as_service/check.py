"""Tell what a program that uses bert-as-service would have to change.

    python -m bertron_client.bert_as_service.check FILE_OR_DIR...

One line a finding: where, how much it asks, what it is, and what it becomes. It reads Python
programs with ``ast`` and runs nothing; in shell scripts, Dockerfiles, requirements and YAML it
looks for commands and packages. A client that comes from another file is not recognised.

Exit code: 0 when nothing is found or imports alone are to be renamed, 1 when something else is to
be changed, 2 when a file cannot be read.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Iterator, List, Optional, Sequence

from ._check_program import Finding, check_program, check_text
from ._check_rules import Kind, Rule

TEXT_SUFFIXES = {
    ".sh", ".bash", ".txt", ".toml", ".cfg", ".ini", ".yml", ".yaml", ".service", ".mk", ".env",
}  # fmt: skip
TEXT_NAMES = ("Dockerfile", "Makefile", "Procfile")
SKIPPED_FOLDERS = {"node_modules", "site-packages", "__pycache__", "build", "dist"}
CHANGES, UNREADABLE = 1, 2  # exit codes


def files_in(path: Path) -> Iterator[Path]:
    """The file itself, or every program and script below a folder."""
    if not path.is_dir():
        yield path
        return
    for found in sorted(path.rglob("*")):
        folders = found.relative_to(path).parts[:-1]
        if any(folder in SKIPPED_FOLDERS or folder.startswith(".") for folder in folders):
            continue
        is_text = found.suffix in TEXT_SUFFIXES or found.name.startswith(TEXT_NAMES)
        if (found.suffix == ".py" or is_text) and found.is_file():
            yield found


def check_file(path: Path) -> List[Finding]:
    """Return the findings in one file; a program that Python 3 cannot read is one itself.

    Raises:
        OSError: It cannot be read.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix != ".py":
        return check_text(text)
    try:
        return check_program(text)
    except (SyntaxError, ValueError) as error:
        rule = Rule(Kind.CHANGE, "Python 3 cannot read it, and so it was not checked")
        line = getattr(error, "lineno", None) or 1
        return [Finding(line, str(getattr(error, "msg", error)), rule)]


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Print the findings; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bertron_client.bert_as_service.check",
        description="Tell what a program that uses bert-as-service would have to change.",
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="FILE_OR_DIR")
    counts: Counter[Kind] = Counter()
    exit_code = 0
    for path in parser.parse_args(arguments).paths:
        try:
            for file in files_in(path):
                for finding in check_file(file):
                    _print(
                        f"{file}:{finding.line}: {finding.rule.kind.value}: {finding.what} -> "
                        f"{finding.rule.becomes}"
                    )
                    counts[finding.rule.kind] += 1
        except OSError as error:
            sys.stderr.write(f"{path}: {error.strerror or error}\n")
            exit_code = UNREADABLE
    _print(
        f"{counts[Kind.CHANGE]} to change, {counts[Kind.IMPORT]} imports to rename, "
        f"{counts[Kind.DIFFERS]} that differ, {counts[Kind.SAME]} the same"
    )
    return exit_code or (CHANGES if counts[Kind.CHANGE] else 0)


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main())
