"""The proof at the end of every export: the saved file against transformers in float32."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from bertron_torchscript.checkpoint import Checkpoint, Pooling
from bertron_torchscript.errors import ExportError, first_line
from bertron_torchscript.manifest import Verification

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Gates on the smallest cosine of any text, by dtype.
REQUIRED_COSINE = {"float32": 0.99999, "bfloat16": 0.9999, "float16": 0.9999, "int8": 0.999}

# Lengths from nothing to far beyond the limit, several scripts, numbers, code and punctuation.
TEXTS = (
    "",
    "Yes.",
    "The plot was thin, but the acting carried it.",
    "How do I reset the password of an account whose e-mail address no longer exists?",
    "Der Zug nach München hatte heute wieder zwanzig Minuten Verspätung.",
    "Le café était fermé, alors nous avons marché jusqu'au port.",
    "El precio subió un 3,5 % en marzo; nadie sabe por qué.",
    "機械学習のモデルを本番環境で動かすのは難しい。",
    "這家餐廳的麵很好吃。",
    "كان الطقس جميلا في ذلك اليوم.",
    "Это предложение написано по-русски.",
    "🚀 shipped it!!! 🎉🎉",
    "SELECT name, COUNT(*) FROM users WHERE age >= 21 GROUP BY name;",
    "def add(a: int, b: int) -> int: return a + b",
    "http://example.org/a/b?c=d&e=f#g",
    "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20",
    "a " * 40,
    "Two things are infinite, they say, the universe and the queue in front of the only open till. "
    * 3,
    "A long report begins with a summary, which nobody reads, and ends with an appendix. " * 12,
    "Overflowing any limit: "
    + "the quick brown fox jumps over the lazy dog, again and again, " * 60,
)

Embed = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def verify(
    embed_packed: Embed,
    checkpoint: Checkpoint,
    *,
    hidden_state: int,
    dtype: str,
    progress: Callable[[str], None],
) -> Verification:
    """Compare the packed forward of a saved file with transformers, row by row.

    Args:
        embed_packed: The saved file's ``forward_packed``.
        checkpoint: What was exported.
        hidden_state: Which of transformers' hidden states is pooled (0: the embeddings).
        dtype: Of the export; decides the gate.
        progress: Told what is going on.

    Raises:
        ExportError: A text's cosine is below the gate, a value is not finite, or a text's vector
            depends on its neighbours in the batch.
    """
    progress(f"comparing {len(TEXTS)} texts with transformers float32")
    token_ids = tokenize(checkpoint, TEXTS)
    batch = embed_packed(*packed(token_ids))
    alone = torch.cat([embed_packed(*packed([ids])) for ids in token_ids])
    if not torch.isfinite(batch).all():
        row = int((~torch.isfinite(batch)).any(1).nonzero()[0])
        raise ExportError(
            f"{checkpoint.name}: text {row} of the comparison has values that are not finite in "
            f"{dtype}; export with another --dtype"
        )
    expected = _transformers_embeddings(checkpoint, token_ids, hidden_state)
    required = REQUIRED_COSINE[dtype]
    worst = _require(batch, expected, required, f"{checkpoint.name} against transformers")
    # Rounding differs between shapes of matrix product, so float32 is not bit for bit either.
    together = 0.999999 if dtype == "float32" else required
    _require(batch, alone, together, f"{checkpoint.name}, a batch against each text alone")
    return Verification(texts=len(TEXTS), min_cosine=worst, required_cosine=required)


def pool_reference(hidden: Tensor, pooling: Pooling) -> Tensor:
    """One text's embedding from its [S, E] token vectors, in float64: [E] or [2E]."""
    hidden = hidden.to(torch.float64)
    pooled = {
        "mean": lambda: hidden.mean(0),
        "max": lambda: hidden.amax(0),
        "mean-max": lambda: torch.cat([hidden.mean(0), hidden.amax(0)]),
        "cls": lambda: hidden[0],
        "last": lambda: hidden[-1],
    }[pooling.mode]()
    return F.normalize(pooled, dim=0) if pooling.normalize else pooled


def _require(found: Tensor, expected: Tensor, required: float, what: str) -> float:
    cosine = F.cosine_similarity(found.to(torch.float64), expected.to(torch.float64), dim=1)
    # Cosine is blind to length: an embedding that is not normalised must have the right one too.
    length_error = (found.norm(dim=1).double() / expected.double().norm(dim=1) - 1).abs().max()
    worst, row = cosine.min(0)
    if not worst >= required or not length_error <= 10 * (1 - required) ** 0.5:
        raise ExportError(
            f"{what}: cosine {worst:.7f} for text {int(row)}, length error {length_error:.2e}; "
            f"required is {required}"
        )
    return float(worst)


def tokenize(checkpoint: Checkpoint, texts: Sequence[str]) -> list[list[int]]:
    """The checkpoint's own token ids of each text, cut at its limit.

    Raises:
        ExportError: The tokenizer cannot be read, does not belong to the model, or gives a text
            no tokens.
    """
    tokenizer = load_tokenizer(checkpoint.tokenizer_file)
    tokenizer.enable_truncation(checkpoint.max_tokens_per_text)
    token_ids = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    largest = max(itertools.chain.from_iterable(token_ids), default=0)
    if largest >= checkpoint.config.vocab_size:
        raise ExportError(
            f"{checkpoint.directory}: the tokenizer gives token {largest}, the model's vocabulary "
            f"has {checkpoint.config.vocab_size}; the tokenizer belongs to another model"
        )
    empty = [row for row, ids in enumerate(token_ids) if not ids]
    if empty:
        raise ExportError(
            f"{checkpoint.directory}: the tokenizer gives text {empty[0]} no tokens, not even "
            "special ones"
        )
    return token_ids


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in ``path``, without the padding and truncation of somebody's training run.

    Raises:
        ExportError: It cannot be read.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ExportError(f"{path}: no tokenizer: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def packed(token_ids: Sequence[list[int]]) -> tuple[Tensor, Tensor, Tensor, int]:
    """The arguments of ``forward_packed``."""
    lengths = [len(ids) for ids in token_ids]
    flat = torch.tensor(list(itertools.chain.from_iterable(token_ids)), dtype=torch.int32)
    ends = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    return flat, torch.zeros_like(flat), ends, max(lengths)


def _transformers_embeddings(
    checkpoint: Checkpoint, token_ids: Iterable[list[int]], hidden_state: int
) -> Tensor:
    from transformers import AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()  # it reports the unused pooler, at length
    logging.disable_progress_bar()
    rows = []
    try:
        model = AutoModel.from_pretrained(
            Path(checkpoint.directory),
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            attn_implementation="eager",
        ).eval()
        for ids in token_ids:  # one at a time: the reference knows neither padding nor a mask
            states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
            rows.append(pool_reference(states[hidden_state][0], checkpoint.pooling))
    except Exception as error:  # whatever a configuration can make of transformers
        raise ExportError(
            f"{checkpoint.directory}: transformers cannot run this checkpoint, so the export "
            f"cannot be compared: {first_line(error)}"
        ) from error
    return torch.stack(rows)
