"""Train a classifier on sentence vectors: the encoder stays as it is, only a small layer is learnt.

Source of the idea: example 5 of bert-as-service.
"""
# ruff: noqa: T201 - an example prints

import argparse
import csv
from pathlib import Path

import numpy as np
from bertron_client.bert_as_service import BertClient
from sklearn.linear_model import LogisticRegression

MESSAGES = Path(__file__).with_name("messages.tsv")
HELD_OUT_EVERY = 4  # a quarter is for the test


def main() -> None:
    """Encode, train, test, and classify one more text."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="grpc://127.0.0.1:8001")
    parser.add_argument("--messages", type=Path, default=MESSAGES, help="label, tab, text")
    parser.add_argument("text", nargs="?", default="Nobody was at the door with my package.")
    args = parser.parse_args()

    with args.messages.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    labels = np.array([row["label"] for row in rows])
    with BertClient(url=args.url) as bc:
        vectors = bc.encode([row["text"] for row in rows])
        new = bc.encode([args.text])

    # By text, not by row: rows of one label may come in turns.
    order = np.random.default_rng(0).permutation(len(rows))
    is_held_out = np.zeros(len(rows), dtype=bool)
    is_held_out[order[::HELD_OUT_EVERY]] = True
    classifier = LogisticRegression(C=10.0, max_iter=1000)
    classifier.fit(vectors[~is_held_out], labels[~is_held_out])
    accuracy = classifier.score(vectors[is_held_out], labels[is_held_out])
    print(f"trained on {np.sum(~is_held_out)} texts of {len(classifier.classes_)} labels")
    print(f"accuracy on {np.sum(is_held_out)} others: {accuracy:.2f}")
    print(f"{args.text!r} is about {classifier.predict(new)[0]}")


if __name__ == "__main__":
    main()
