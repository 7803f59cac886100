"""Send without waiting, and fetch: all in order, each as it arrives, or an endless stream.

Source of the idea: example 2 of bert-as-service.
"""
# ruff: noqa: T201 - an example prints

import argparse
import itertools
from collections.abc import Iterator

import numpy as np
from bertron_client.bert_as_service import BertClient


def batch(number: int, size: int) -> list[str]:
    """Texts that differ from batch to batch."""
    return [f"Order {number * size + row} has not arrived yet." for row in range(size)]


def endless(size: int) -> Iterator[list[str]]:
    """Batches for as long as anyone asks."""
    return (batch(number, size) for number in itertools.count())


def main() -> None:
    """Send the same texts in three ways."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="grpc://127.0.0.1:8001")
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--size", type=int, default=8, help="texts a batch")
    args = parser.parse_args()

    with BertClient(url=args.url) as bc:
        for number in range(args.batches):
            bc.encode(batch(number, args.size), blocking=False)
        vectors = bc.fetch_all(concat=True)  # in the order of sending
        print(f"fetch_all: {vectors.shape[0]} texts, {vectors.shape[1]} numbers each")

        for number in range(args.batches):
            bc.encode(batch(number, args.size), blocking=False)
        # In the order of arrival; ids count the client's requests.
        fetched = {response.id: response.embedding for response in bc.fetch()}
        first = min(fetched)
        same = np.allclose(fetched[first], vectors[: args.size], atol=1e-5)
        print(f"fetch: request {first} has the vectors of fetch_all: {same}")

        # The generator is endless: it is read only a few batches ahead of this loop.
        count = 0
        for response in bc.encode_async(endless(args.size), max_num_batch=args.batches):
            count += len(response.embedding)
        print(f"encode_async: {count} texts of an endless generator")


if __name__ == "__main__":
    main()
