"""The command ``report``: report and judge a saved run anew, by other thresholds or a baseline."""

import argparse
from pathlib import Path

from bertron_loadtest.report import text_summary, write_report
from bertron_loadtest.run import THRESHOLDS, say
from bertron_loadtest.run_record import Run
from bertron_loadtest.thresholds import judge, read_thresholds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--thresholds", type=Path, default=THRESHOLDS, help="TOML file")
    parser.add_argument("--baseline", type=Path, metavar="RUN", help="folder of an earlier run")


def main(args: argparse.Namespace) -> int:
    """Write the report into the run's folder; 0 if every threshold was kept."""
    run = Run.load(args.run)
    baseline = Run.load(args.baseline) if args.baseline else None
    verdicts = judge(run, read_thresholds(args.thresholds), baseline)
    write_report(run, args.run, verdicts, baseline)
    say(text_summary(run, verdicts))
    return 0 if all(verdict.passed for verdict in verdicts) else 1
