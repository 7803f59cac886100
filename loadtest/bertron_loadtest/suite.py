"""The command ``suite``: find a server's capacity, then judge it below that and beyond.

1. A ramp of users in a closed loop, until more of them bring no more texts/s: the capacity.
2. An open loop at an eighth of it. Answers must not only be right: the slowest of a hundred may not
   take much longer than usual. Why an eighth: docs/decisions/0017.
3. An open loop at half of it. Calls wait for each other; none may be forgotten.
4. An open loop at a tenth more than it. Queues grow, and nothing may be lost for that: each
   call that was sent is answered, or refused.
"""

import argparse
import dataclasses
from pathlib import Path

from bertron_loadtest.figures import figures_of
from bertron_loadtest.load import LoadSettings, ServerPlace, run_load
from bertron_loadtest.phases import WARM_UP
from bertron_loadtest.report import text_summary, write_report
from bertron_loadtest.run import (
    LIMITS,
    add_load_arguments,
    add_server_arguments,
    new_folder,
    say,
    server_place,
    urls_by_scheme,
)
from bertron_loadtest.run_record import Run
from bertron_loadtest.thresholds import judge, read_thresholds

# Of the capacity. Beyond it an open loop has thousands of calls in flight, which take of the cores
# that server and load share, so that a little beyond it is enough.
QUIET, BELOW, BEYOND = 0.125, 0.5, 1.1
_RUNS = 4
MOST_USERS = 64  # of the ramp: one batch
_WARM_UP_S = 2.0
# The server refuses what has waited for 30 s; a call outlasts that, so that it hears of it.
_TIMEOUT_S = 40.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_server_arguments(parser.add_argument_group("the server"))
    add_load_arguments(parser.add_argument_group("the load"))
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="of load, a quarter for each (default: 60)"
    )
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: a new one")


def main(args: argparse.Namespace) -> int:
    """Make the four runs; 0 if each kept its thresholds."""
    folder = args.output or new_folder("suite")
    ramp = LoadSettings(
        callers=tuple(urls_by_scheme(args.url)) if args.url else ("grpc", "http"),
        model=args.model,
        workload=args.workload,
        texts=args.texts,
        texts_a_call=args.texts_a_call,
        tokens=args.tokens,
        seed=args.seed,
        shape="ramp",
        users=MOST_USERS,
        seconds=args.seconds / _RUNS,
        warm_up_s=_WARM_UP_S,
        timeout_s=_TIMEOUT_S,
    )
    with server_place(args) as place:
        run, is_good = _judged(ramp, place, folder, "ramp", None)
        capacity = capacity_of(run)
        if not capacity:
            raise ValueError("the ramp had no right answer: there is no capacity to go by")
        say(f"\ncapacity: {capacity:.1f} calls/s\n")
        below: Run | None = None
        for name, share in (("quiet", QUIET), ("below", BELOW), ("beyond", BEYOND)):
            settings = dataclasses.replace(
                ramp, loop="open", rate=share * capacity, shape="steady", users=1
            )
            run, is_kept = _judged(settings, place, folder, name, below)
            if name == "below":
                below = run
            is_good &= is_kept
    say(f"\nreports: {folder}/*/report.html")
    return 0 if is_good else 1


def capacity_of(run: Run) -> float:
    """Return the most calls/s with right answers that any step of a ramp had."""
    steps = [phase for phase in run.phases if phase.name != WARM_UP]
    found = [figures_of(run, phase) for phase in steps]
    return max((figures["calls_per_s"] or 0.0 for figures in found), default=0.0)


def _judged(
    settings: LoadSettings, place: ServerPlace, folder: Path, name: str, baseline: Run | None
) -> tuple[Run, bool]:
    load = f"{settings.rate:.1f} calls/s" if settings.rate else f"up to {settings.users} users"
    say(f"{name}: {load} for {settings.seconds:.0f} s")
    run = run_load(settings, place, folder / name)
    verdicts = judge(run, read_thresholds(LIMITS / f"{name}.toml"), baseline)
    write_report(run, folder / name, verdicts, baseline)
    say(text_summary(run, verdicts))
    return run, all(verdict.passed for verdict in verdicts)
