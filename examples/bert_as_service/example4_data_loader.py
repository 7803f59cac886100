"""A torch DataLoader whose worker processes ask the server, so that a training loop gets vectors.

bert-as-service's example did this with TensorFlow's tf.data.

Source of the idea: example 4 of bert-as-service.
"""
# ruff: noqa: T201 - an example prints

import argparse
import csv
from pathlib import Path

import torch
from bertron_client.bert_as_service import BertClient
from torch.utils.data import DataLoader, Dataset

MESSAGES = Path(__file__).with_name("messages.tsv")


class EncodedTexts(Dataset[tuple[torch.Tensor, str]]):
    """Texts that become vectors when they are loaded, one call a batch."""

    def __init__(self, texts: list[str], labels: list[str], url: str) -> None:
        self._texts = texts
        self._labels = labels
        self._url = url
        self._client: BertClient | None = None  # one a process, made where it is used

    def __len__(self) -> int:
        return len(self._texts)

    def __getitems__(self, rows: list[int]) -> list[tuple[torch.Tensor, str]]:
        """Return a whole batch; DataLoader prefers this to asking row by row."""
        if self._client is None:
            self._client = BertClient(url=self._url)
        vectors = torch.from_numpy(self._client.encode([self._texts[row] for row in rows]))
        return [(vectors[place], self._labels[row]) for place, row in enumerate(rows)]


def main() -> None:
    """Load every text once, as a training loop would."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="grpc://127.0.0.1:8001")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2, help="processes; 0 loads in this one")
    args = parser.parse_args()

    with MESSAGES.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    dataset = EncodedTexts([row["text"] for row in rows], [row["label"] for row in rows], args.url)
    loader = DataLoader(
        dataset,
        batch_size=args.batch_size,
        shuffle=True,
        num_workers=args.workers,
        # gRPC does not survive a fork of a process that has used it; a fresh one has no such past.
        multiprocessing_context="spawn" if args.workers else None,
    )
    count = 0
    for vectors, _labels in loader:  # [batch, E] float32, and as many labels
        count += len(vectors)
    print(f"{count} of {len(dataset)} texts in {len(loader)} batches by {args.workers} workers")


if __name__ == "__main__":
    main()
