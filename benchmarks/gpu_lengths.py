"""The token lengths of real texts, as numbers: a GPU machine needs no texts and no tokenizer.

``python benchmarks/gpu_lengths.py`` counts them anew with all-MiniLM-L6-v2's tokenizer.
"""

import statistics
from pathlib import Path

LENGTHS = Path(__file__).with_name("token_lengths.txt")
COUNT = 1024
A_LINE = 32


def read(path: Path = LENGTHS) -> list[int]:
    """Tokens of each text, special ones included, in the order in which the texts arrived."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [int(word) for line in lines if not line.startswith("#") for word in line.split()]


def fill(lengths: list[int]) -> float:
    """Real tokens among those of the batch when padded to its longest."""
    return sum(lengths) / (len(lengths) * max(lengths))


def batches(lengths: list[int], size: int) -> list[list[int]]:
    """Whole batches of ``size`` texts in the order of arrival."""
    return [lengths[first : first + size] for first in range(0, len(lengths) - size + 1, size)]


def typical_batch(lengths: list[int], size: int) -> list[int]:
    """The batch with the median fill, and of several the first; for one text the median length."""
    found = batches(lengths, size)
    measure = fill if size > 1 else sum
    median = statistics.median_low(measure(batch) for batch in found)
    return next(batch for batch in found if measure(batch) == median)


def first_tokens(lengths: list[int], tokens: int) -> list[int]:
    """The first texts, over again where they end, that have exactly ``tokens`` together."""
    chosen: list[int] = []
    left = tokens
    while left:
        chosen.append(min(left, lengths[len(chosen) % len(lengths)]))
        left -= chosen[-1]
    return chosen


def write(lengths: list[int], source: str, path: Path = LENGTHS) -> None:
    """The file that ``read`` reads, with where its numbers come from."""
    lines = [
        f"# Token lengths of the first {len(lengths)} {source}, in their order, special tokens",
        "# included, by all-MiniLM-L6-v2's tokenizer; written by benchmarks/gpu_lengths.py.",
    ]
    starts = range(0, len(lengths), A_LINE)
    lines += [" ".join(map(str, lengths[first : first + A_LINE])) for first in starts]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Tokenise, count, write."""
    import workloads
    from checkpoints import minilm

    texts, source = workloads.read_texts(COUNT)
    token_ids = workloads.tokenize(minilm().directory / "tokenizer.json", texts)
    write([len(ids) for ids in token_ids], source)


if __name__ == "__main__":
    main()
