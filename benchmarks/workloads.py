"""What is encoded: batches of token ids, cut from real texts, the same for every engine."""

import dataclasses
import json
from pathlib import Path

import numpy as np
from measuring import ROOT
from tokenizers import Tokenizer

BATCH = 32
SHAPES = ((1, 32), (1, 128), (8, 128), (32, 128))  # texts x tokens of the uniform workloads
UNIFORM_TOKENS = 1024  # at least, in a uniform workload: small batches are repeated
MAX_TOKENS = 256  # all-MiniLM-L6-v2's own limit
_SHARED_TEXTS = ROOT.parent / "shared" / "data" / "texts.jsonl"
_OWN_TEXTS = ROOT / "server" / "bertron_server" / "demo_texts.txt"


@dataclasses.dataclass(frozen=True)
class Batch:
    """One call of an engine.

    Attributes:
        input_ids: [B, S] int64, padded with 0 to the longest.
        attention_mask: [B, S] int64.
        texts: What the ids come from; empty where they were cut to a length.
    """

    input_ids: np.ndarray
    attention_mask: np.ndarray
    texts: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Workload:
    """Batches that are encoded one after the other and timed together."""

    name: str
    batches: tuple[Batch, ...]

    @property
    def is_texts(self) -> bool:
        """Whether it is counted in texts: else all are equally long, and tokens say more."""
        return bool(self.batches[0].texts)

    @property
    def texts(self) -> list[str]:
        """All texts, in the batches' order."""
        return [text for batch in self.batches for text in batch.texts]

    @property
    def unit(self) -> str:
        """What a rate counts."""
        return "texts/s" if self.is_texts else "tokens/s"

    @property
    def amount(self) -> int:
        """Texts, or real tokens."""
        return len(self.texts) if self.is_texts else self.tokens

    @property
    def tokens(self) -> int:
        """Padding excluded."""
        return sum(int(batch.attention_mask.sum()) for batch in self.batches)

    @property
    def fill(self) -> float:
        """Real tokens among those of the padded batches."""
        return self.tokens / sum(batch.input_ids.size for batch in self.batches)


def read_texts(count: int) -> tuple[list[str], str]:
    """The first ``count`` real texts, and what they are."""
    if _SHARED_TEXTS.exists():
        with _SHARED_TEXTS.open(encoding="utf-8") as file:
            texts = [json.loads(line)["text"] for line, _ in zip(file, range(count), strict=False)]
        return texts, "reviews, editorials and tweets (texts.jsonl)"
    texts = _OWN_TEXTS.read_text("utf-8").splitlines()[:count]
    return texts, "reviews (server/bertron_server/demo_texts.txt)"


def tokenize(tokenizer_file: Path, texts: list[str]) -> list[list[int]]:
    """Each text's ids."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    return [encoding.ids for encoding in tokenizer.encode_batch(texts)]


def uniform(token_ids: list[list[int]], texts: int, tokens: int) -> Workload:
    """Batches of ``texts`` x ``tokens``: a stream of real tokens between [CLS] and [SEP]."""
    count = max(1, UNIFORM_TOKENS // (texts * tokens))
    first, last = token_ids[0][0], token_ids[0][-1]
    stream = np.array([token for ids in token_ids for token in ids[1:-1]])
    body = np.resize(stream, count * texts * (tokens - 2)).reshape(count * texts, tokens - 2)
    ids = np.pad(body, ((0, 0), (1, 1)))
    ids[:, 0], ids[:, -1] = first, last
    parts = np.split(ids, count)
    name = f"uniform {texts} x {tokens}"
    return Workload(name, tuple(Batch(part, np.ones_like(part)) for part in parts))


def real(token_ids: list[list[int]], texts: list[str], *, by_length: bool) -> Workload:
    """Batches of 32 texts, in the order they came or sorted by length."""
    order = list(range(len(texts)))
    if by_length:
        order.sort(key=lambda index: len(token_ids[index]))
    batches = []
    for first in range(0, len(order), BATCH):
        chosen = order[first : first + BATCH]
        longest = max(len(token_ids[index]) for index in chosen)
        ids = np.zeros((len(chosen), longest), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, index in enumerate(chosen):
            ids[row, : len(token_ids[index])] = token_ids[index]
            mask[row, : len(token_ids[index])] = 1
        batches.append(Batch(ids, mask, tuple(texts[index] for index in chosen)))
    name = "sorted by length" if by_length else "in arrival order"
    return Workload(f"{len(texts)} real texts, {name}", tuple(batches))
