"""What a run left: its settings, phases, calls, and what was seen of the server meanwhile."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bertron_loadtest.phases import PhaseRecord
from bertron_loadtest.samples import Samples, read_samples, write_samples

RUN_FILE = "run.json"
SAMPLES_FILE = "samples.csv"
SNAPSHOTS_FILE = "snapshots.jsonl"


@dataclass(frozen=True)
class StepCounters:
    """What Triton server counts of one model (a step, or the ensemble) since its start.

    Attributes:
        requests: Answered.
        failures: Requests answered with an error.
        texts: Computed.
        executions: Batches.
        total_ns: Of all answered requests from their arrival to their answer; so the next two.
        queue_ns: Waiting for a batch.
        compute_ns: In the model, copying in and out included; 0 for an ensemble.
        batch_sizes: Executions by texts in them; empty for an ensemble.
    """

    requests: int
    failures: int
    texts: int
    executions: int
    total_ns: int
    queue_ns: int
    compute_ns: int
    batch_sizes: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ProcessUse:
    """CPU seconds since a process began, and the memory that it holds now."""

    cpu_s: float
    memory_bytes: int


@dataclass(frozen=True)
class Snapshot:
    """The server at one moment; each part is empty where it could not be seen.

    Attributes:
        time_s: Unix time.
        steps: By model: the ensemble and its steps.
        metrics: Bertron's own of ``/metrics``, by name, or ``NAME{le="64"}`` for buckets.
        processes: By what they are: ``tritonserver``, ``tokenizer``, ``bert``, ``load generator``.
    """

    time_s: float
    steps: Mapping[str, StepCounters] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    processes: Mapping[str, ProcessUse] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """All of it.

    Attributes:
        settings: What was asked for, by option's name.
        setting: Machine, date, versions and the server, for the report's foot.
        phases: As they were.
        samples: Every call that ended.
        sent: Calls that were begun; more than there are samples where some never ended.
        not_sent: Arrivals of an open loop that had no room in the load generator.
        snapshots: In order of time, from before the load until after it.
        problem: Why it could not be made; "" where it could.
    """

    settings: Mapping[str, Any]
    setting: Mapping[str, str]
    phases: Sequence[PhaseRecord]
    samples: Samples
    sent: int
    not_sent: int = 0
    snapshots: Sequence[Snapshot] = ()
    problem: str = ""

    def save(self, folder: Path) -> None:
        """Write its files into ``folder``, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        write_samples(folder / SAMPLES_FILE, self.samples)
        with (folder / SNAPSHOTS_FILE).open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(snapshot)) + "\n" for snapshot in self.snapshots)
        document = {
            "settings": dict(self.settings),
            "setting": dict(self.setting),
            "phases": [asdict(phase) for phase in self.phases],
            "sent": self.sent,
            "not_sent": self.not_sent,
            "problem": self.problem,
        }
        (folder / RUN_FILE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Run":
        """Read what ``save`` wrote.

        Raises:
            OSError: A file is missing.
            ValueError: A file is none of ours.
        """
        document = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        try:
            phases = [PhaseRecord(**phase) for phase in document["phases"]]
            with (folder / SNAPSHOTS_FILE).open(encoding="utf-8") as file:
                snapshots = [_snapshot(json.loads(line)) for line in file]
            return cls(
                settings=document["settings"],
                setting=document["setting"],
                phases=phases,
                samples=Samples(read_samples(folder / SAMPLES_FILE)),
                sent=document["sent"],
                not_sent=document["not_sent"],
                snapshots=snapshots,
                problem=document["problem"],
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"{folder} holds no run that this version can read: {error}") from None


def _snapshot(document: dict[str, Any]) -> Snapshot:
    steps = {}
    for name, counters in document["steps"].items():
        sizes = {int(size): count for size, count in counters.pop("batch_sizes").items()}
        steps[name] = StepCounters(**counters, batch_sizes=sizes)
    processes = {name: ProcessUse(**use) for name, use in document["processes"].items()}
    return Snapshot(document["time_s"], steps, document["metrics"], processes)
