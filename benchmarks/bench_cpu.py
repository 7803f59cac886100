"""How fast is the encoder on this CPU, beside what others run there, in one run?

Every engine gets the same token ids, in turns. A row whose vectors are not those of transformers
in float32 shows no speed-up, but says so.
"""

import argparse
import contextlib
import dataclasses
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import engines
import measuring
import torch
import workloads
from bertron_backend.cores import usable_cores
from bertron_torchscript.errors import ExportError
from checkpoints import Checkpoint, bert_base, minilm
from engines import REFERENCE, Engine
from peers import Peers, PeersError
from transformers.utils import logging
from workloads import Workload

DTYPES = ("float32", "bfloat16", "int8")
# BERT-base does 8 times the arithmetic a token, and with random weights no text means anything.
TEXTS = {"MiniLM-L6": 640, "BERT-base": 64}
FROM_TEXTS = ("MiniLM-L6",)
HEADINGS = ("engine", "rate", "x transformers float32", "smallest cosine")
CSV_HEADINGS = (
    *("model", "workload", "engine", "unit", "rate", "slowest", "fastest", "rounds"),
    *("ratio", "cosine", "required_cosine", "problem"),
)


@dataclasses.dataclass
class Row:
    """One engine on one workload."""

    engine: str
    dtype: str
    cosine: float = float("nan")
    seconds: list[float] = dataclasses.field(default_factory=list)
    problem: str = ""

    @property
    def passes(self) -> bool:
        """Whether its vectors are right, so that its speed means something."""
        return not self.problem and self.cosine >= measuring.REQUIRED_COSINE[self.dtype]


@dataclasses.dataclass(frozen=True)
class Target:
    """A ratio that MiniLM is to reach, in one run."""

    workload: str
    engine: str
    base: str
    least: float


def targets(count: int) -> list[Target]:
    """What was aimed at, where ``count`` real texts were encoded."""
    real = f"{count} real texts, in arrival order"
    sentence_transformers = "sentence-transformers, its own sorting, from texts"
    return [
        Target("uniform 8 x 128", "Bertron bfloat16", REFERENCE, 2.0),
        Target("uniform 8 x 128", "Bertron bfloat16", "OpenVINO bfloat16", 1.0),
        Target(real, "Bertron bfloat16", REFERENCE, 4.5),
        Target(real, "Bertron int8", REFERENCE, 6.0),
        Target(real, "Bertron bfloat16", "OpenVINO bfloat16", 1.9),
        Target(real, "Bertron int8", "ONNX Runtime int8", 2.0),
        Target(real, "Bertron bfloat16, from texts", sentence_transformers, 3.0),
    ]


def main() -> None:
    """Check, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=10, help="no round of a workload begins later"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of a workload, at least")
    parser.add_argument("--models", nargs="+", choices=list(TEXTS), default=list(TEXTS))
    parser.add_argument("--texts", type=int, help="real texts, instead of each model's number")
    parser.add_argument("--no-peers", action="store_true", help="without those of peers.py")
    parser.add_argument("--results", type=Path, default=measuring.RESULTS)
    args = parser.parse_args()

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(usable_cores())
    started, busy = time.monotonic(), measuring.load_average()
    out, lines = [], []
    with contextlib.ExitStack() as stack:
        process, problem = None, "left out"
        if not args.no_peers:
            try:
                process = stack.enter_context(Peers())
            except PeersError as error:
                problem = str(error)
        for name in args.models:
            checkpoint = {"MiniLM-L6": minilm, "BERT-base": bert_base}[name]()
            texts, source = workloads.read_texts(args.texts or TEXTS[name])
            found = {}
            for workload, rows in measured(checkpoint, texts, process, problem, args):
                found[workload.name] = {row.engine: row for row in rows}
                out.append(section(name, source, workload, rows))
                lines += csv_lines(name, workload, rows)
                sys.stdout.write(out[-1] + "\n")
                sys.stdout.flush()
            if name == "MiniLM-L6":
                out.append(target_table(found, len(texts)))
                sys.stdout.write(out[-1] + "\n")
        versions = process.versions if process else {}
    minutes = (time.monotonic() - started) / 60
    out.append(
        f"{measuring.setting(versions)}. Load average before: {busy:.2f}. Took {minutes:.1f} min.\n"
    )
    sys.stdout.write(out[-1])
    title = f"# In process, on a CPU\n\n{' '.join(__doc__.split())}\n\n"
    measuring.write_results(args.results, "cpu", title + "\n".join(out), CSV_HEADINGS, lines)


def measured(
    checkpoint: Checkpoint,
    texts: list[str],
    process: Peers | None,
    problem: str,
    args: argparse.Namespace,
) -> Iterator[tuple[Workload, list[Row]]]:
    """Each workload with its rows, as they come."""
    token_ids = workloads.tokenize(checkpoint.directory / "tokenizer.json", texts)
    found, missing = all_engines(checkpoint, process, problem)
    if checkpoint.name not in FROM_TEXTS:
        found = [engine for engine in found if not engine.needs_texts]
    for workload in (
        *(workloads.uniform(token_ids, *shape) for shape in workloads.SHAPES),
        workloads.real(token_ids, texts, by_length=False),
        workloads.real(token_ids, texts, by_length=True),
    ):
        chosen = [engine for engine in found if suits(engine, workload)]
        yield workload, measure(chosen, workload, args.seconds, args.rounds) + missing


def suits(engine: Engine, workload: Workload) -> bool:
    """An engine that takes texts needs some, and one that sorts has nothing to do when sorted."""
    if not engine.needs_texts:
        return True
    return workload.is_texts and "sorted" not in workload.name


def all_engines(
    checkpoint: Checkpoint, process: Peers | None, problem: str
) -> tuple[list[Engine], list[Row]]:
    """Every engine that there is, the reference first, and a row for each that there is not."""
    found = [engines.transformers(checkpoint, "float32")]
    missing = []
    for dtype in DTYPES:
        try:
            found += engines.bertron(checkpoint, dtype)
        except ExportError as error:
            missing.append(Row(f"Bertron {dtype}", dtype, problem=f"not exported: {error}"))
    found.append(engines.transformers(checkpoint, "bfloat16"))
    found += engines.sentence_transformers(checkpoint)
    if process is not None:
        try:
            process.load(checkpoint)
            return found + engines.peers(process), missing
        except PeersError as error:
            problem = str(error)
    missing += [Row(name, dtype, problem=problem) for _, name, dtype in engines.PEERS]
    return found, missing


def measure(chosen: list[Engine], workload: Workload, budget_s: float, least: int) -> list[Row]:
    """Check every engine, which warms it, then time those that can run in turns."""
    rows = {engine.name: Row(engine.name, engine.dtype) for engine in chosen}
    expected = chosen[0].vectors(workload)
    for engine in chosen:
        row = rows[engine.name]
        try:
            found = expected if engine is chosen[0] else engine.vectors(workload)
            row.cosine = measuring.smallest_cosine(found, expected)
        except Exception as error:
            row.problem = f"{type(error).__name__}: {error}".splitlines()[0]
    timers = {
        engine.name: lambda engine=engine: engine.seconds(workload)
        for engine in chosen
        if not rows[engine.name].problem
    }
    for name, times in measuring.interleaved(timers, budget_s=budget_s, least=least).items():
        rows[name].seconds = times
    return list(rows.values())


def rates(row: Row, workload: Workload) -> list[float]:
    """Texts or tokens a second, of each round."""
    return [workload.amount / value for value in row.seconds]


def speed_up(row: Row, rows: list[Row]) -> str:
    """Against transformers float32, or why it is not shown."""
    if row.problem:
        return row.problem
    if not row.passes:
        return f"none: cosine below {measuring.REQUIRED_COSINE[row.dtype]}"
    return f"{measuring.ratio(rows[0].seconds, row.seconds):.2f}"


def section(model: str, source: str, workload: Workload, rows: list[Row]) -> str:
    """One workload's table."""
    fill = f", fill {workload.fill:.2f} when padded; {source}" if workload.is_texts else ""
    rounds = len(rows[0].seconds)
    cells = [
        [
            row.engine,
            measuring.spread(rates(row, workload)) if row.seconds else "",
            speed_up(row, rows),
            f"{row.cosine:.6f}",
        ]
        for row in rows
    ]
    headings = [HEADINGS[0], f"{workload.unit}, median (range), rounds: {rounds}", *HEADINGS[2:]]
    return f"## {model}, {workload.name}{fill}\n\n{measuring.table(headings, cells)}\n"


def csv_lines(model: str, workload: Workload, rows: list[Row]) -> list[list[object]]:
    """One workload's rows for programs."""
    lines: list[list[object]] = []
    for row in rows:
        found = rates(row, workload)
        figures = (
            [f"{value:.2f}" for value in (statistics.median(found), min(found), max(found))]
            if found
            else [""] * 3
        )
        lines.append(
            [
                *(model, workload.name, row.engine, workload.unit, *figures, len(found)),
                f"{measuring.ratio(rows[0].seconds, row.seconds):.3f}" if row.passes else "",
                *(f"{row.cosine:.7f}", measuring.REQUIRED_COSINE[row.dtype], row.problem),
            ]
        )
    return lines


def target_table(found: dict[str, dict[str, Row]], count: int) -> str:
    """What was aimed at beside what was reached."""
    cells = []
    for target in targets(count):
        rows = found[target.workload]
        ours, base = rows.get(target.engine), rows.get(target.base)
        cells.append(
            [
                f"{target.engine}, {target.workload}",
                target.base,
                f"{target.least:g}",
                *verdict(ours, base, target.least),
            ]
        )
    headings = ["MiniLM-L6", "against", "target ratio", "measured", ""]
    return f"## Targets\n\n{measuring.table(headings, cells)}\n"


def verdict(ours: Row | None, base: Row | None, least: float) -> tuple[str, str]:
    """The ratio, and whether it is enough; a peer's wrong vectors are said, and count for it."""
    if ours is None or not ours.passes:
        return "", "not met: no right vectors"
    if base is None or not base.seconds:
        return "", "not measured: no peer"
    reached = measuring.ratio(base.seconds, ours.seconds)
    note = "" if base.passes else f"; the peer's cosine is {base.cosine:.5f}"
    return f"{reached:.2f}", ("met" if reached >= least else "not met") + note


if __name__ == "__main__":
    main()
