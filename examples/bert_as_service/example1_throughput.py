"""How many texts a second, by the number of texts in a call. The client splits long lists itself.

Source of the idea: example 1 of bert-as-service.
"""
# ruff: noqa: T201 - an example prints

import argparse
import time
from pathlib import Path

from bertron_client.bert_as_service import BertClient

TEXTS = Path(__file__).parents[2] / "server/bertron_server/demo_texts.txt"


def main() -> None:
    """Print a line for each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="grpc://127.0.0.1:8001")
    parser.add_argument("--texts", type=Path, default=TEXTS, help="one a line")
    parser.add_argument("--smallest", type=int, default=16, help="texts in the first call")
    parser.add_argument("--calls", type=int, default=5, help="each has twice as many texts")
    args = parser.parse_args()

    texts = args.texts.read_text(encoding="utf-8").splitlines()
    with BertClient(url=args.url) as bc:
        texts = texts[: args.smallest * 2 ** (args.calls - 1)]
        _, tokens = bc.encode(texts, show_tokens=True)  # which also connects, before the clock runs
        token_counts = [len(text) for text in tokens]
        print("  texts  seconds  texts/s  tokens/s")
        for call in range(args.calls):
            size = args.smallest * 2**call
            rows = [row % len(texts) for row in range(size)]
            started = time.perf_counter()
            bc.encode([texts[row] for row in rows])
            seconds = time.perf_counter() - started
            num_tokens = sum(token_counts[row] for row in rows)
            print(f"{size:7} {seconds:8.2f} {size / seconds:8.0f} {num_tokens / seconds:9.0f}")


if __name__ == "__main__":
    main()
