"""What does the server cost, and how does it stand beside sentence-transformers?

Texts are real ones in their order, 32 to a batch; every figure is a median of rounds in which
all take turns. A row whose vectors are not sentence-transformers' shows no speed-up, but says so.
"""

import argparse
import functools
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import engines
import measuring
import numpy as np
import torch
import workloads
from bertron_backend.cores import usable_cores
from bertron_client import Client
from bertron_server.server import TritonServer
from checkpoints import minilm
from sentence_transformers import SentenceTransformer
from transformers.utils import logging
from workloads import BATCH

REPOSITORY = measuring.ROOT / "model_repository"
REFERENCE = "sentence-transformers, batches in arrival order"
CSV_HEADINGS = ("kind", "name", "median", "least", "most", "times", "cosine")
Embed = Callable[[list[str]], object]


def in_batches(embed: Embed, texts: list[str]) -> np.ndarray:
    """All texts through ``embed``, BATCH at a time, in their order."""
    parts = [embed(texts[first : first + BATCH]) for first in range(0, len(texts), BATCH)]
    return np.concatenate([np.asarray(part) for part in parts])


def concurrent(url: str, clients: int, texts_per_call: int, texts: list[str]) -> np.ndarray:
    """All texts through ``clients`` closed loops of their own, each a part of them."""
    parts: list[np.ndarray | Exception] = [RuntimeError("it never ran")] * clients

    def one(number: int) -> None:
        part = texts[number::clients]
        try:
            with Client(url) as client:
                calls = range(0, len(part), texts_per_call)
                rows = [client.embed(part[first : first + texts_per_call]) for first in calls]
            parts[number] = np.concatenate(rows)
        except Exception as error:
            parts[number] = error

    threads = [threading.Thread(target=one, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for part in parts:
        if isinstance(part, Exception):
            raise part
    rows = np.empty((len(texts), parts[0].shape[1]), dtype=np.float32)
    for number, part in enumerate(parts):
        rows[number::clients] = part
    return rows


# One-text calls of one engine follow each other, as a client's in a closed loop do, in blocks that
# take turns; before each block the threads of the one before come to rest, in this very process.
CALLS_A_BLOCK = 50
UNTIMED_CALLS = 10
PAUSE_S = 0.2


def latency(calls: dict[str, Embed], texts: list[str], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of one-text calls; the same texts for all."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for first in range(0, repeats, CALLS_A_BLOCK):
        for name, call in calls.items():
            time.sleep(PAUSE_S)
            for turn in range(first - UNTIMED_CALLS, first + CALLS_A_BLOCK):
                text = texts[turn % len(texts)]
                took_s = measuring.seconds(lambda call=call, text=text: call([text]))
                if turn >= first:
                    times[name].append(1e3 * took_s)
    return times


def main() -> None:
    """Check, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repository", type=Path, default=REPOSITORY, help="what is served")
    parser.add_argument("--seconds", type=float, default=60, help="no round begins later")
    parser.add_argument("--rounds", type=int, default=3, help="at least")
    parser.add_argument("--calls", type=int, default=200, help="one-text calls for the latency")
    parser.add_argument("--texts", type=int, default=640)
    parser.add_argument("--results", type=Path, default=measuring.RESULTS)
    args = parser.parse_args()

    logging.disable_progress_bar()
    busy = measuring.load_average()
    torch.set_num_threads(usable_cores())
    texts, source = workloads.read_texts(args.texts)
    peer = SentenceTransformer(str(minilm().directory), device="cpu")
    peer_embed = functools.partial(peer.encode, batch_size=BATCH, show_progress_bar=False)
    ours = engines.Bertron(args.repository)
    dtype = ours.encoder.manifest.dtype
    in_process, served = f"Bertron {dtype}, in process", f"Bertron {dtype}, served"

    started = time.monotonic()
    with TritonServer(args.repository, log_path=None) as server:
        startup_s = time.monotonic() - started
        with Client(server.grpc_url) as grpc, Client(server.http_url) as http:
            times, cosines = throughput(
                {
                    REFERENCE: lambda: in_batches(peer_embed, texts),
                    "sentence-transformers, its own sorting": lambda: peer_embed(texts),
                    in_process: lambda: in_batches(ours.embed_texts, texts),
                    f"{served}, one call for all (gRPC)": lambda: grpc.embed(texts),
                    f"{served}, one call for all (HTTP)": lambda: http.embed(texts),
                    f"{served}, 4 clients x 32 texts (gRPC)": lambda: concurrent(
                        server.grpc_url, 4, 32, texts
                    ),
                    f"{served}, 32 clients x 1 text (gRPC)": lambda: concurrent(
                        server.grpc_url, 32, 1, texts
                    ),
                },
                args,
            )
            delays = latency(
                {
                    "sentence-transformers": peer_embed,
                    in_process: ours.embed_texts,
                    f"{served} (gRPC)": grpc.embed,
                    f"{served} (HTTP)": http.embed,
                },
                texts,
                args.calls,
            )
    minutes = (time.monotonic() - started) / 60
    required = measuring.REQUIRED_COSINE[dtype]
    headings = [f"{len(texts)} {source}", "texts/s (range)", "ratio", "smallest cosine"]
    body = [
        f"# Served, {dtype}\n\n{' '.join(__doc__.split())}\n",
        measuring.table(headings, throughput_rows(times, cosines, required, len(texts))) + "\n",
        measuring.table(["one text", "p50 ms", "p99 ms"], latency_rows(delays)) + "\n",
        target_table(times, cosines, required, delays, startup_s, dtype) + "\n",
        f"{measuring.setting()}. Load average before: {busy:.2f}. Took {minutes:.1f} min.\n",
    ]
    sys.stdout.write("\n".join(body))
    name = "serving" if args.repository == REPOSITORY else f"serving-{dtype}"
    measuring.write_results(
        args.results, name, "\n".join(body), CSV_HEADINGS, csv_lines(times, cosines, delays)
    )


def throughput(
    calls: dict[str, Callable[[], object]], args: argparse.Namespace
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds a round and smallest cosine of each; the first is the reference."""
    vectors = {name: np.asarray(call()) for name, call in calls.items()}  # warms them too
    expected = vectors[REFERENCE]
    cosines = {name: measuring.smallest_cosine(found, expected) for name, found in vectors.items()}
    timers = {name: lambda call=call: measuring.seconds(call) for name, call in calls.items()}
    times = measuring.interleaved(timers, budget_s=args.seconds, least=args.rounds)
    return times, cosines


def throughput_rows(
    times: dict[str, list[float]], cosines: dict[str, float], required: float, count: int
) -> list[list[str]]:
    """A row each, with its ratio to the reference where its vectors are right."""
    rows = []
    for name, values in times.items():
        rates = [count / value for value in values]
        right = cosines[name] >= required
        ratio = f"{measuring.ratio(times[REFERENCE], values):.2f}" if right else ""
        shown = ratio or f"none: cosine below {required}"
        rows.append([name, measuring.spread(rates), shown, f"{cosines[name]:.6f}"])
    return rows


def latency_rows(delays: dict[str, list[float]]) -> list[list[str]]:
    """A row each."""
    return [
        [name, f"{statistics.median(values):.2f}", f"{np.percentile(values, 99):.2f}"]
        for name, values in delays.items()
    ]


def target_table(
    times: dict[str, list[float]],
    cosines: dict[str, float],
    required: float,
    delays: dict[str, list[float]],
    startup_s: float,
    dtype: str,
) -> str:
    """What was aimed at beside what was reached."""
    served, in_process = f"Bertron {dtype}, served", f"Bertron {dtype}, in process"
    p50 = {name: statistics.median(values) for name, values in delays.items()}
    added = p50[f"{served} (gRPC)"] - p50[in_process]
    share = measuring.ratio(times[in_process], times[f"{served}, 4 clients x 32 texts (gRPC)"])
    right = min(cosine for name, cosine in cosines.items() if dtype in name) >= required
    rows = [
        ("served / in process, 4 clients x 32 texts", ">= 0.85", f"{share:.2f}", share >= 0.85),
        ("one text, added to the p50 (gRPC), ms", "<= 1.5", f"{added:.2f}", added <= 1.5),
        ("start to ready, s", "<= 10", f"{startup_s:.1f}", startup_s <= 10),
    ]
    return measuring.table(
        ["", "target", "measured", ""],
        [
            [what, target, found if right else "", "met" if met and right else "not met"]
            for what, target, found, met in rows
        ],
    )


def csv_lines(
    times: dict[str, list[float]], cosines: dict[str, float], delays: dict[str, list[float]]
) -> list[list[object]]:
    """For programs: seconds for all texts, then milliseconds of one-text calls."""
    lines: list[list[object]] = []
    for kind, values in (("all texts, s", times), ("one text, ms", delays)):
        for name, found in values.items():
            lines.append(
                [
                    *(kind, name, f"{statistics.median(found):.4f}"),
                    *(f"{min(found):.4f}", f"{max(found):.4f}", len(found)),
                    f"{cosines[name]:.7f}" if values is times else "",
                ]
            )
    return lines


if __name__ == "__main__":
    main()
