"""The command ``matrix``: bert-as-service's published benchmark, cell by cell.

It varied one number at a time, around 1 client that sends 2048 texts of 40 tokens a call. What it
never measured, many clients with one text each and latencies, is in the other workloads.
"""

import argparse
import csv
import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bertron_loadtest.figures import figures_of
from bertron_loadtest.load import LoadError, LoadSettings, ServerPlace, run_load
from bertron_loadtest.run import add_server_arguments, new_folder, say, server_place
from bertron_loadtest.setting import describe_setting
from bertron_loadtest.workload import BERT_AS_SERVICE_TEXTS_A_CALL, BERT_AS_SERVICE_TOKENS

TOKENS = (20, 40, 80, 160, 320)
TEXTS_A_CALL = (1, 4, 8, 16, 64, 256, 512, 1024, 2048, 4096)
CLIENTS = (1, 2, 4, 8, 16, 32)
# The least speed at which a call of a cell is sure to end in time; its deadline is made of it.
_SLOWEST_TOKENS_PER_S = 500
_LEAST_TIMEOUT_S = 60.0
_HEADINGS = ("varied", "value", "texts/s", "tokens/s", "p50 ms", "p99 ms", "calls", "not right")


@dataclass(frozen=True)
class Cell:
    """One measurement; ``varied`` is which number is not the usual one."""

    varied: str
    tokens: int = BERT_AS_SERVICE_TOKENS
    texts_a_call: int = BERT_AS_SERVICE_TEXTS_A_CALL
    clients: int = 1

    @property
    def value(self) -> int:
        """Return the number that is varied."""
        return int(getattr(self, self.varied))


def cells(most_texts_a_call: int) -> Iterator[Cell]:
    """Yield all of them, with the usual call no larger than ``most_texts_a_call``."""
    usual = min(BERT_AS_SERVICE_TEXTS_A_CALL, most_texts_a_call)
    for tokens in TOKENS:
        yield Cell("tokens", tokens=tokens, texts_a_call=usual)
    for texts in TEXTS_A_CALL:
        if texts <= most_texts_a_call:
            yield Cell("texts_a_call", texts_a_call=texts)
    for clients in CLIENTS:
        yield Cell("clients", texts_a_call=usual, clients=clients)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_server_arguments(parser.add_argument_group("the server"))
    parser.add_argument("--caller", choices=("grpc", "http"), default="grpc")
    parser.add_argument(
        "--seconds-a-cell",
        type=float,
        default=10.0,
        help="a call that has begun is waited for (default: 10)",
    )
    parser.add_argument(
        "--most-texts-a-call",
        type=int,
        default=max(TEXTS_A_CALL),
        help="for slow machines: leave larger calls out (default: 4096)",
    )
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: a new one")


def main(args: argparse.Namespace) -> int:
    """Measure every cell; 0 if every answer of all was right."""
    if args.most_texts_a_call < 1 or args.seconds_a_cell <= 0:
        raise ValueError(
            f"--most-texts-a-call is {args.most_texts_a_call}, --seconds-a-cell "
            f"{args.seconds_a_cell:g}; positive numbers are wanted"
        )
    folder = args.output or new_folder("matrix")
    rows: list[tuple[object, ...]] = []
    with server_place(args) as place:
        for cell in cells(args.most_texts_a_call):
            row = _measure(cell, args, place, folder)
            rows.append(row)
            say("  ".join(f"{name} {value}" for name, value in zip(_HEADINGS, row, strict=True)))
    _write(folder, rows)
    say(f"table: {folder / 'matrix.md'}")
    return 1 if any(row[-1] for row in rows) else 0


def _measure(
    cell: Cell, args: argparse.Namespace, place: ServerPlace, folder: Path
) -> tuple[object, ...]:
    call_tokens = cell.tokens * cell.texts_a_call * cell.clients
    settings = LoadSettings(
        callers=(args.caller,),
        model=args.model,
        workload="bert-as-service",
        tokens=cell.tokens,
        texts_a_call=(cell.texts_a_call,),
        users=cell.clients,
        seconds=args.seconds_a_cell,
        warm_up_s=0.0,  # a call in flight would be cut by its end
        timeout_s=max(_LEAST_TIMEOUT_S, call_tokens / _SLOWEST_TOKENS_PER_S),
    )
    run = run_load(settings, place, folder / f"{cell.varied}-{cell.value}")
    if run.problem:
        raise LoadError(run.problem)
    # Calls may outlast the time: the whole of it counts, until the last answer.
    last_s = float(run.samples.end_s.max(initial=run.phases[0].end_s))
    phase = dataclasses.replace(run.phases[0], end_s=last_s)
    found = figures_of(dataclasses.replace(run, phases=[phase]), None)
    shown = [_number(found[name]) for name in ("texts_per_s", "tokens_per_s", "p50_ms", "p99_ms")]
    calls = int(found["calls"] or 0)
    not_right = run.sent - int(found["right"] or 0)
    return (cell.varied, cell.value, *shown, calls, not_right)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    digits = 0 if value >= 100 else 1 - math.floor(math.log10(max(value, 1e-3)))
    return f"{value:.{max(0, digits)}f}"


def _write(folder: Path, rows: list[tuple[object, ...]]) -> None:
    """``matrix.md`` for people, ``matrix.csv`` for programs."""
    lines = [_HEADINGS, ["---"] * len(_HEADINGS), *rows]
    table = "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
    setting = "; ".join(f"{name} {value}" for name, value in describe_setting().items())
    title = "# bert-as-service's matrix\n\nOne number is varied at a time, around 1 client and "
    usual = f"{BERT_AS_SERVICE_TEXTS_A_CALL} texts of {BERT_AS_SERVICE_TOKENS} tokens a call"
    (folder / "matrix.md").write_text(
        f"{title}{usual}, or as many as were allowed.\n\n{table}\n\n{setting}.\n", encoding="utf-8"
    )
    with (folder / "matrix.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_HEADINGS)
        writer.writerows(rows)
