"""Answer questions by the nearest question of an FAQ.

Source of the idea: example 8 of bert-as-service.
"""
# ruff: noqa: T201 - an example prints

import argparse
import csv
from pathlib import Path

import numpy as np
from bertron_client.bert_as_service import BertClient

FAQ = Path(__file__).with_name("faq.tsv")
QUERIES = [
    "where is my package right now?",
    "the mug was in pieces when I opened the box",
    "I can't remember my login",
]


def unit(vectors: np.ndarray) -> np.ndarray:
    """Give each row length 1, so that a product is a cosine."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def main() -> None:
    """Encode the questions once, and search them for each query."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("queries", nargs="*", default=QUERIES)
    parser.add_argument("--url", default="grpc://127.0.0.1:8001")
    parser.add_argument("--faq", type=Path, default=FAQ, help="question, tab, answer")
    parser.add_argument("--top", type=int, default=3, help="questions shown for each query")
    args = parser.parse_args()

    with args.faq.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    with BertClient(url=args.url) as bc:
        questions = unit(bc.encode([row["question"] for row in rows]))
        scores = unit(bc.encode(args.queries)) @ questions.T  # [queries, questions]
    for query, row in zip(args.queries, scores, strict=True):
        best = np.argsort(-row)[: args.top]
        print(f"\n{query}")
        print(f"  {rows[best[0]]['answer']}")
        for index in best:
            print(f"  {row[index]:.2f}  {rows[index]['question']}")


if __name__ == "__main__":
    main()
