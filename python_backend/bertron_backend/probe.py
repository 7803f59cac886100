"""Made-up batches that run before any user's: does the dtype hold the model's values?"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from bertron_backend.buckets import BUCKETS, longest_by_class
from bertron_backend.errors import InferenceError
from bertron_backend.packing import PackedBatch, PackedRequest, Vocabulary, split

Forward = Callable[[PackedBatch], npt.NDArray[np.float32]]
SEED = 1  # the same batches at every start
_log = logging.getLogger(__name__)


def random_batch(lengths: Sequence[int], vocabulary: Vocabulary) -> PackedBatch:
    """Texts of so many tokens, of ids and token types that the model knows."""
    generator = np.random.default_rng(SEED)
    tokens = sum(lengths)
    ids = generator.integers(vocabulary.vocab_size, size=tokens, dtype=np.int32)
    types = generator.integers(max(1, vocabulary.type_vocab_size), size=tokens, dtype=np.int32)
    (batch,) = split(PackedRequest(ids, types, list(lengths)), 1)
    return batch


def probe_batches(vocabulary: Vocabulary) -> list[PackedBatch]:
    """For each length class one long text, many of one length, and a long one among short ones.

    Those of many are beyond every bucket: they compile what a batch too large for a CUDA graph
    will run. One text of each bucket's size follows, or a few: products are chosen by the number
    of tokens, and without CUDA graphs nothing else would compile them.
    """
    limit = vocabulary.max_tokens_per_text
    beyond = BUCKETS[-1].tokens + 1
    batches = []
    for longest in longest_by_class(beyond, limit).values():
        alike = [longest] * -(-beyond // longest)
        short = max(1, longest // 8)
        mixed = [longest, *[short] * -(-beyond // short)]
        batches += [random_batch(lengths, vocabulary) for lengths in ([longest], alike, mixed)]
    for bucket in BUCKETS:
        longest = min(limit, bucket.tokens)
        batches.append(random_batch([longest] * (bucket.tokens // longest), vocabulary))
    return batches


def all_finite(forward: Forward, batches: Sequence[PackedBatch]) -> bool:
    """Whether no embedding of any batch has a NaN or an infinity; every batch is run."""
    finite = [np.isfinite(forward(batch)).all() for batch in batches]
    return bool(np.all(finite))


def settle_dtype(
    dtype: str, load: Callable[[str], None], forward: Forward, batches: Sequence[PackedBatch]
) -> None:
    """Load a model in bfloat16 where its embeddings are not finite in float16.

    float16 is the more exact of the two by three bits, and ends at 65504; some checkpoints have
    larger values inside.

    Args:
        dtype: Of the model that is loaded.
        load: Replaces it by the same model in the dtype given.
        forward: Runs the model that was loaded last.
        batches: What is tried.

    Raises:
        InferenceError: Embeddings are not finite in a dtype other than float16.
    """
    is_finite = all_finite(forward, batches)
    if not is_finite and dtype == "float16":
        _log.warning(
            "float16 overflows in this model: embeddings of random texts are not finite; it is "
            "computed in bfloat16, which has the range of float32 and 3 bits less than float16. "
            "Export it with --dtype bfloat16 or float32 to choose yourself"
        )
        dtype = "bfloat16"
        load(dtype)
        is_finite = all_finite(forward, batches)
    if not is_finite:
        raise InferenceError(f"embeddings of random texts are not finite in {dtype}")
