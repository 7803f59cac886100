"""What is asked of the server: workloads by name, the same for the same seed. Needs no Locust."""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLE_TEXTS = Path(__file__).with_name("texts.txt")
# Common words, each of them one token for BERT's uncased vocabulary.
ONE_TOKEN_WORDS = Path(__file__).with_name("one_token_words.txt")
WORKLOADS = ("short", "documents", "mixed", "bulk", "bert-as-service")

NUM_KNOWN_TEXTS = 8
KNOWN_TEXT_SHARE = 0.5  # of calls that hold a known text in a random place

_DOCUMENT_WORDS = (120, 400)
_NUM_DOCUMENTS = 128
_NUM_MIXED = 512
# ln(words) of the mixed texts: half have under 20 words, one in forty over 140.
_MIXED_MEDIAN_WORDS, _MIXED_SIGMA = 20, 1.0
_MOST_MIXED_WORDS = 400
_BULK_TEXTS_A_CALL = (32, 64, 128, 256)
# bert-as-service's benchmark: where only one number is varied, the others are these.
BERT_AS_SERVICE_TOKENS = 40
BERT_AS_SERVICE_TEXTS_A_CALL = 2048
_NUM_EQUAL_TEXTS = 4096
_SPECIAL_TOKENS = 2  # [CLS] and [SEP]


@dataclass(frozen=True)
class Workload:
    """Texts, and how many of them a call has.

    Attributes:
        name: One of ``WORKLOADS``.
        texts: What calls are drawn from.
        texts_a_call: Sizes of calls, one of them at random.
        seed: Of everything random.
    """

    name: str
    texts: Sequence[str]
    texts_a_call: Sequence[int]
    seed: int

    @property
    def known_texts(self) -> list[str]:
        """The texts whose vectors are known before the load begins."""
        count = min(NUM_KNOWN_TEXTS, len(self.texts))
        return _chance(self.seed, "known").sample(list(self.texts), count)

    def calls(self, user: str) -> Iterator[list[str]]:
        """Yield without end the lists of texts that one user sends; each user's are its own."""
        chance = _chance(self.seed, user)
        known = self.known_texts
        while True:
            call = chance.choices(self.texts, k=chance.choice(self.texts_a_call))
            if chance.random() < KNOWN_TEXT_SHARE:
                call[chance.randrange(len(call))] = chance.choice(known)
            yield call


def make_workload(
    name: str,
    *,
    seed: int = 0,
    sample: Path = SAMPLE_TEXTS,
    texts_a_call: Sequence[int] | None = None,
    tokens: int = BERT_AS_SERVICE_TOKENS,
) -> Workload:
    """Return a workload by its name.

    Args:
        name: ``short``: the sample's texts. ``documents``: 120 to 400 words each. ``mixed``: a
            log-normal mix, half of it under 20 words, the longest 400. ``bulk``: the sample's
            texts, 32 to 256 a call. ``bert-as-service``: texts of equal length, many a call.
        seed: The same seed gives the same texts in the same order.
        sample: File with a text a line, of which all but the last are made.
        texts_a_call: Instead of the workload's own: 1, or for the last two as said.
        tokens: Of each text in ``bert-as-service``, special tokens included.

    Raises:
        OSError: The sample cannot be read.
        ValueError: Another name, a number that is too small, or a sample without text.
    """
    if name not in WORKLOADS:
        raise ValueError(f"workload is {name!r}, one of {', '.join(WORKLOADS)} is wanted")
    sizes: Sequence[int] = (1,)
    chance = _chance(seed, name)
    if name == "bert-as-service":
        texts, sizes = _equal_texts(chance, tokens), (BERT_AS_SERVICE_TEXTS_A_CALL,)
    else:
        texts = read_texts(sample)
        if name == "bulk":
            sizes = _BULK_TEXTS_A_CALL
        elif name == "documents":
            lengths = [chance.randint(*_DOCUMENT_WORDS) for _ in range(_NUM_DOCUMENTS)]
            texts = _texts_of_lengths(chance, texts, lengths)
        elif name == "mixed":
            texts = _texts_of_lengths(chance, texts, _mixed_lengths(chance))
    sizes = sizes if texts_a_call is None else tuple(texts_a_call)
    if not sizes or min(sizes) < 1:
        raise ValueError(f"texts a call are {sizes}, numbers from 1 on are wanted")
    return Workload(name, texts, sizes, seed)


def read_texts(path: Path) -> list[str]:
    """Return the lines of a file that are not empty.

    Raises:
        OSError: It cannot be read.
        ValueError: There are none, or the file is not UTF-8.
    """
    texts = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not texts:
        raise ValueError(f"{path} has no line with text")
    return texts


def _chance(seed: int, purpose: str) -> random.Random:
    return random.Random(f"{seed} {purpose}")  # noqa: S311 - texts, not secrets


def _mixed_lengths(chance: random.Random) -> list[int]:
    lengths = (
        _MIXED_MEDIAN_WORDS * chance.lognormvariate(0, _MIXED_SIGMA) for _ in range(_NUM_MIXED)
    )
    return [min(max(1, round(length)), _MOST_MIXED_WORDS) for length in lengths]


def _texts_of_lengths(
    chance: random.Random, sample: Sequence[str], lengths: Sequence[int]
) -> list[str]:
    """Texts of so many words each, cut from the sample's texts in random order."""
    words = itertools.chain.from_iterable(text.split() for text in _endlessly(chance, sample))
    return [" ".join(itertools.islice(words, length)) for length in lengths]


def _endlessly(chance: random.Random, sample: Sequence[str]) -> Iterator[str]:
    while True:
        yield from chance.sample(sample, len(sample))


def _equal_texts(chance: random.Random, tokens: int) -> list[str]:
    if tokens <= _SPECIAL_TOKENS:
        raise ValueError(f"tokens of a text are {tokens}, more than {_SPECIAL_TOKENS} are wanted")
    words = read_texts(ONE_TOKEN_WORDS)
    count = tokens - _SPECIAL_TOKENS
    return [" ".join(chance.choices(words, k=count)) for _ in range(_NUM_EQUAL_TEXTS)]
