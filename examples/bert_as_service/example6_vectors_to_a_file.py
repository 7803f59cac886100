"""Write the vectors of a file of texts to .npy or .parquet, batch by batch, and read them back.

For large files see `bertron encode`, which goes on where it was interrupted.

Source of the idea: example 6 of bert-as-service, which wrote TFRecord.
"""
# ruff: noqa: T201 - an example prints

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bertron_client.bert_as_service import BertClient

TEXTS = Path(__file__).parents[2] / "server/bertron_server/demo_texts.txt"
Batches = Iterator[tuple[list[str], np.ndarray]]


def encoded(bc: BertClient, texts: list[str], batch_size: int) -> Batches:
    """Texts and their vectors [B, E], so that never more than a batch is in memory."""
    for first in range(0, len(texts), batch_size):
        batch = texts[first : first + batch_size]
        yield batch, bc.encode(batch)


def write_npy(path: Path, batches: Batches, count: int) -> None:
    """Write [count, E] float32, row i for text i."""
    rows, done = None, 0
    for _, vectors in batches:
        if rows is None:  # the first batch says how long a vector is
            shape = (count, vectors.shape[1])
            rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        rows[done : done + len(vectors)] = vectors
        done += len(vectors)


def write_parquet(path: Path, batches: Batches) -> None:
    """Write the columns text and vector."""
    writer = None
    for texts, vectors in batches:
        values = pa.array(vectors.reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(values, vectors.shape[1])
        table = pa.table({"text": texts, "vector": column})
        if writer is None:
            writer = pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def read(path: Path) -> np.ndarray:
    """Return [B, E] float32."""
    if path.suffix == ".npy":
        return np.load(path)
    column = pq.read_table(path, columns=["vector"])["vector"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)


def main() -> None:
    """Write, read back, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="a file that ends with .npy or .parquet")
    parser.add_argument("--url", default="grpc://127.0.0.1:8001")
    parser.add_argument("--texts", type=Path, default=TEXTS, help="one a line")
    parser.add_argument("--limit", type=int, default=200, help="texts that are taken")
    parser.add_argument("--batch-size", type=int, default=64)
    args = parser.parse_args()
    if args.output.suffix not in (".npy", ".parquet"):
        parser.error(f"{args.output} ends with neither .npy nor .parquet")

    texts = args.texts.read_text(encoding="utf-8").splitlines()[: args.limit]
    with BertClient(url=args.url) as bc:
        batches = encoded(bc, texts, args.batch_size)
        if args.output.suffix == ".npy":
            write_npy(args.output, batches, len(texts))
        else:
            write_parquet(args.output, batches)
        vectors = read(args.output)
        same = np.allclose(vectors[-1], bc.encode(texts[-1:])[0], atol=1e-5)
    print(f"wrote {vectors.shape[0]} x {vectors.shape[1]} to {args.output}")
    print(f"the last row read is the vector of the last text: {same}")


if __name__ == "__main__":
    main()
