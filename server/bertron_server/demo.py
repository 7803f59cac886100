"""What `make demo` shows: the real server, real texts, a search a person can judge."""

import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
from bertron_client import Client
from bertron_torchscript.manifest import read_manifest
from tqdm import tqdm

from bertron_server.server import TritonServer

MODEL_REPOSITORY = Path("model_repository")
LOG = Path("build/demo-server.log")
# 640 customer and film reviews, a sample of vaderSentiment 3.3.2's (MIT licence): see NOTICE.
TEXTS_FILE = Path(__file__).with_name("demo_texts.txt")
QUERIES = (
    "how long does a charge last?",
    "a comedy that made me laugh",
    "trouble installing the software",
    "I want my money back",
)
HITS = 3
TEXTS_PER_CALL = 64

FloatArray = npt.NDArray[np.float32]


def main() -> int:
    """Serve, embed, search, stop; 0 when every text was answered."""
    texts = TEXTS_FILE.read_text(encoding="utf-8").splitlines()
    manifest = read_manifest(MODEL_REPOSITORY / "bert" / "1")
    LOG.parent.mkdir(exist_ok=True)
    _say(f"Starting Triton server with {manifest.name} ({manifest.dtype}); its log is {LOG}")
    started = time.monotonic()
    with TritonServer(MODEL_REPOSITORY, log_path=LOG) as server:
        _say(
            f"Ready in {time.monotonic() - started:.1f} s: {server.http_url} and {server.grpc_url}"
        )
        with Client(server.grpc_url) as client:
            vectors, tokens, seconds = embed_with_progress(client, texts)
            _say(
                f"{len(texts)} texts, {tokens} tokens in {seconds:.2f} s: "
                f"{len(texts) / seconds:.0f} texts/s, {tokens / seconds:.0f} tokens/s, "
                f"vectors {vectors.shape[0]} x {vectors.shape[1]}"
            )
            shown = ", ".join(f"{value:.4f}" for value in vectors[0, :5])
            _say(f"The first is [{shown}, ...]: {texts[0][:60]}")
            show_search(client, texts, vectors)
        _say("Stopping the server")
    _say("Stopped. `make serve` keeps one running; README.md says how to ask it.")
    return 0


def embed_with_progress(client: Client, texts: list[str]) -> tuple[FloatArray, int, float]:
    """Vectors [B, E], tokens in all, and the seconds it took."""
    rows, tokens = [], 0
    client.embed(texts[:1])  # connect, so that the speed is the server's
    started = time.monotonic()
    with tqdm(total=len(texts), unit="text", desc="Embedding", file=sys.stdout) as bar:
        for first in range(0, len(texts), 2 * TEXTS_PER_CALL):  # two requests in flight
            answer = client.embed(texts[first : first + 2 * TEXTS_PER_CALL])
            rows.append(np.asarray(answer))
            tokens += int(answer.token_counts.sum())
            bar.update(len(answer))
    return np.concatenate(rows), tokens, time.monotonic() - started


def show_search(client: Client, texts: list[str], vectors: FloatArray) -> None:
    """Print the texts nearest to each query by cosine; the vectors have length 1."""
    scores = np.asarray(client.embed(QUERIES)) @ vectors.T  # [queries, B]
    for query, row in zip(QUERIES, scores, strict=True):
        _say(f'\n"{query}"')
        for index in np.argsort(-row)[:HITS]:
            _say(f"  {row[index]:.2f}  {texts[index][:110]}")
    _say("")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
