"""The command ``tune``: try the server's settings under load, and write down the best.

One setting after the other is tried while the others stay at the best so far. For each, its values
take turns for some rounds, each with a server of its own; one is chosen over the present one only
where its rounds and the present one's do not overlap, and no answer was wrong, refused or missing.
With many values one of them is better by chance: so in the end the old and the new settings take
turns once more, and the old ones stay unless the new are better then too.

The result is a configuration beside the old: ``configs/tuned.pbtxt`` of each step, which
``--model-config-name=tuned`` chooses.
"""

import argparse
import datetime
import math
import os
import shutil
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bertron_loadtest.compare import is_better
from bertron_loadtest.figures import figures_of
from bertron_loadtest.knobs import SEARCH, Trials, read_value, with_value
from bertron_loadtest.load import LoadSettings, run_load
from bertron_loadtest.run import MODEL_REPOSITORY, new_folder, say, started_server
from bertron_loadtest.setting import describe_setting

CONFIG_NAME = "tuned"
# Clients x texts a call: many clients with a text each, and a few with many.
LOADS = ((32, 1), (4, 32))
_MOST_P99_GROWTH = 1.2  # of the first load: throughput is not bought with slow answers
_TIMEOUT_S = 30.0
LEAST_ROUNDS = 3


@dataclass
class Trial:
    """One set of values, measured for some rounds.

    Attributes:
        rates: A round's score: the geometric mean of the loads' texts/s.
        p99_ms: Of the first load, a round each.
        loads: texts/s of each load, a round each.
        faults: Calls without a right answer.
    """

    rates: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    loads: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    faults: int = 0

    @property
    def rate(self) -> float:
        """Return the median score."""
        return statistics.median(self.rates)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "--model-repository",
        type=Path,
        default=MODEL_REPOSITORY,
        help="of the server; its configurations are left as they are",
    )
    parser.add_argument("--model", default="text_embedding", help="that is tuned")
    parser.add_argument(
        "--only",
        action="append",
        choices=[trials.name for trials in SEARCH],
        help="may be repeated; default: all",
    )
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each load (default: 6)")
    parser.add_argument("--texts", type=Path, help="file with a text a line; default: a sample")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: a new one")


def main(args: argparse.Namespace) -> int:
    """Tune; 0 if there is a configuration, be it the old one."""
    if args.rounds < LEAST_ROUNDS or args.seconds <= 0:
        raise ValueError(
            f"--rounds is {args.rounds}, --seconds {args.seconds:g}; at least {LEAST_ROUNDS} "
            "rounds, which show the noise, and a positive time are wanted"
        )
    tuning = Tuning(args, args.output or new_folder("tune"))
    before = dict(tuning.configs)
    for trials in SEARCH:
        if not args.only or trials.name in args.only:
            tuning.search(trials)
    first, last = tuning.measure([before, tuning.configs], "before and after")
    if not is_improved(first, last):
        say("the new settings are not better than the old beyond the noise: the old ones stay")
        tuning.take_back(before)
    tuning.write(first, last)
    return 0


class Tuning:
    """The best configurations so far, and how they came to be."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self._args = args
        self.repository: Path = args.model_repository
        self.runs_folder = folder
        prefix = "" if args.model == "text_embedding" else f"{args.model}_"
        self._models = {step: f"{prefix}{step}" for step in ("bert", "tokenizer")}
        self.configs = {
            step: (self.repository / model / "config.pbtxt").read_text(encoding="utf-8")
            for step, model in self._models.items()
        }
        self._table: list[str] = []

    def search(self, trials: Trials) -> None:
        """Measure values of numbers that belong together, and keep the best."""
        present = tuple(read_value(self.configs[knob.step], knob) for knob in trials.knobs)
        values = [present, *(value for value in trials.values if value != present)]
        candidates = [self._with_values(trials, value) for value in values]
        measured = dict(zip(values, self.measure(candidates, trials.name), strict=True))
        chosen = choose(present, measured)
        shown = ", ".join(
            f"{_values(value)}: {_range(trial.rates)}" for value, trial in measured.items()
        )
        self.configs = self._with_values(trials, chosen, f"{_today()}, texts/s by value: {shown}")
        for value, trial in measured.items():
            notes = ["chosen"] if value == chosen else []
            notes += [f"{trial.faults} not right"] if trial.faults else []
            self._table.append(_row(f"{trials.name} {_values(value)}", trial, ", ".join(notes)))
        say(f"{trials.name}: {_values(chosen)} ({shown})")

    def _with_values(
        self, trials: Trials, values: Sequence[int], measured: str = ""
    ) -> dict[str, str]:
        configs = dict(self.configs)
        for knob, value in zip(trials.knobs, values, strict=True):
            comment = f"{knob.what}. Tuned {measured}" if measured else ""
            configs[knob.step] = with_value(configs[knob.step], knob, value, comment)
        return configs

    def take_back(self, before: Mapping[str, str]) -> None:
        """Set every number to what it was; what was measured stays beside it."""
        for knob in (knob for trials in SEARCH for knob in trials.knobs):
            value = read_value(before[knob.step], knob)
            self.configs[knob.step] = with_value(self.configs[knob.step], knob, value)

    def measure(self, candidates: Sequence[Mapping[str, str]], what: str) -> list[Trial]:
        """Measure sets of configurations in turns."""
        trials = [Trial() for _ in candidates]
        for turn in range(self._args.rounds):
            for number, (configs, trial) in enumerate(zip(candidates, trials, strict=True)):
                say(f"{what}: round {turn + 1}, {number + 1} of {len(candidates)}")
                folder = self.runs_folder / what.replace(" ", "-") / f"{turn + 1}-{number + 1}"
                self._measure_once(configs, trial, folder)
        return trials

    def _measure_once(self, configs: Mapping[str, str], trial: Trial, folder: Path) -> None:
        scores = []
        with (
            tempfile.TemporaryDirectory(prefix="bertron-tune-") as copy,
            started_server(self.copied(Path(copy), configs)) as place,
        ):
            for load in LOADS:
                users, texts_a_call = load
                settings = LoadSettings(
                    callers=("grpc",),
                    model=self._args.model,
                    workload="short",
                    texts=self._args.texts,
                    texts_a_call=(texts_a_call,),
                    users=users,
                    seconds=self._args.seconds,
                    warm_up_s=2.0,
                    timeout_s=_TIMEOUT_S,
                )
                run = run_load(settings, place, folder / f"{users}x{texts_a_call}")
                found = figures_of(run, run.phases[-1]) if run.phases else {}
                right = figures_of(run, None)["right"] or 0
                trial.faults += int(run.sent - right) + bool(run.problem)
                rate = found.get("texts_per_s") or math.nan
                scores.append(rate)
                trial.loads.setdefault(load, []).append(rate)
                if load == LOADS[0]:
                    trial.p99_ms.append(found.get("p99_ms") or math.nan)
        trial.rates.append(math.exp(statistics.fmean(map(math.log, scores))))

    def copied(self, copy: Path, configs: Mapping[str, str]) -> Path:
        """A repository of links to the files of the real one, with other configurations."""
        source = self.repository.resolve()
        repository = copy / "models"
        shutil.copytree(source, repository, copy_function=os.symlink)
        for step, model in self._models.items():
            config = repository / model / "config.pbtxt"
            config.unlink()
            config.write_text(configs[step], encoding="utf-8")
        return repository

    def write(self, before: Trial, after: Trial) -> None:
        """Write the configurations beside the old ones, and the table of all that was tried."""
        for step, model in self._models.items():
            configs = self.repository / model / "configs"
            configs.mkdir(exist_ok=True)
            path = configs / f"{CONFIG_NAME}.pbtxt"
            path.write_text(self.configs[step], encoding="utf-8")
            say(f"wrote {path}")
        heading = ["tried", "score (range)", *(f"{a} x {b}, texts/s" for a, b in LOADS)]
        heading += [f"p99 ms at {LOADS[0][0]} x {LOADS[0][1]}", ""]
        lines = [
            "| " + " | ".join(heading) + " |",
            "| " + " | ".join(["---"] * len(heading)) + " |",
            *self._table,
            _row("before", before, ""),
            _row("after", after, ""),
        ]
        setting = "; ".join(f"{name} {value}" for name, value in describe_setting().items())
        table = "\n".join(lines)
        words = f"# Tuning\n\n{' '.join((__doc__ or '').split())}\n\n{table}\n\n{setting}.\n"
        (self.runs_folder / "tuning.md").write_text(words, encoding="utf-8")
        say(words)
        say(f"serve it with: bertron serve -- --model-config-name={CONFIG_NAME}")


def is_improved(before: Trial, after: Trial) -> bool:
    """Return whether the new settings are to be had: faster, no answer lost, none much later."""
    return (
        not after.faults
        and is_better(after.rates, before.rates) > 0
        and statistics.median(after.p99_ms) <= _MOST_P99_GROWTH * statistics.median(before.p99_ms)
    )


def choose(present: tuple[int, ...], trials: Mapping[tuple[int, ...], Trial]) -> tuple[int, ...]:
    """Return the best value: the present one unless another is better beyond the noise."""
    now = trials[present]
    better = [
        (trial.rate, value)
        for value, trial in trials.items()
        if value != present and is_improved(now, trial)
    ]
    return max(better)[1] if better else present


def _row(name: str, trial: Trial, note: str) -> str:
    loads = [f"{statistics.median(trial.loads[load]):.0f}" for load in LOADS]
    cells = [name, _range(trial.rates), *loads, f"{statistics.median(trial.p99_ms):.0f}", note]
    return "| " + " | ".join(cells) + " |"


def _range(rates: Sequence[float]) -> str:
    return f"{statistics.median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f})"


def _values(values: Sequence[int]) -> str:
    return " x ".join(map(str, values))


def _today() -> str:
    return datetime.datetime.now(tz=datetime.UTC).date().isoformat()
