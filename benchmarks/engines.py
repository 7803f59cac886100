"""The encoders that are compared, each behind the same three calls."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from bertron_backend.batch_tokenizer import BatchTokenizer, TextRequest
from bertron_backend.encoder import Encoder
from bertron_backend.packing import TokenRequest
from checkpoints import Checkpoint, encoder_settings, exported
from measuring import seconds
from peers import Peers
from sentence_transformers import SentenceTransformer
from transformers import AutoModel
from workloads import BATCH, Batch, Workload

REFERENCE = "transformers float32"


@dataclasses.dataclass(frozen=True)
class Engine:
    """One row.

    Attributes:
        dtype: Decides which cosine it must reach.
        vectors: All of a workload, [texts, E]; also what warms it up.
        seconds: One pass over the workload.
        needs_texts: It does not take token ids.
    """

    name: str
    dtype: str
    vectors: Callable[[Workload], np.ndarray]
    seconds: Callable[[Workload], float]
    needs_texts: bool = False


def in_process(
    name: str, dtype: str, embed: Callable[[Batch], np.ndarray], *, needs_texts: bool = False
) -> Engine:
    """An engine of this process that takes one batch at a time."""

    def run(workload: Workload) -> list[np.ndarray]:
        return [embed(batch) for batch in workload.batches]

    return Engine(
        name,
        dtype,
        vectors=lambda workload: np.concatenate(run(workload)),
        seconds=lambda workload: seconds(lambda: run(workload)),
        needs_texts=needs_texts,
    )


def token_request(batch: Batch) -> TokenRequest:
    """As the tokenizer model sends it to the encoder."""
    ids = batch.input_ids.astype(np.int32)
    return TokenRequest(ids, batch.attention_mask.astype(np.int32), np.zeros_like(ids))


class Bertron:
    """The server's own tokenizer and encoder, called directly."""

    def __init__(self, repository: Path) -> None:
        self.encoder = Encoder(repository / "bert" / "1", "cpu", encoder_settings(repository))
        self.tokenizer = BatchTokenizer(
            repository / "tokenizer" / "1" / "tokenizer.json",
            max_tokens_per_text=self.encoder.manifest.limits.max_tokens_per_text,
            max_characters_per_text=100_000,
            max_characters_per_request=200_000,
        )

    def embed_tokens(self, batch: Batch) -> np.ndarray:
        """[B, E]."""
        return self._embed(token_request(batch))

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """[B, E], tokens counted in."""
        (tokens,) = self.tokenizer.encode([TextRequest(texts)])
        if isinstance(tokens, Exception):
            raise tokens
        return self._embed(
            TokenRequest(tokens.input_ids, tokens.attention_mask, tokens.token_type_ids)
        )

    def _embed(self, request: TokenRequest) -> np.ndarray:
        (rows,) = self.encoder.embed([request])
        if isinstance(rows, Exception):
            raise rows
        return rows


def bertron(checkpoint: Checkpoint, dtype: str) -> list[Engine]:
    """Ours from token ids, and from texts.

    Raises:
        ExportError: There is no such export of this model.
    """
    ours = Bertron(exported(checkpoint, dtype))
    return [
        in_process(f"Bertron {dtype}", dtype, ours.embed_tokens),
        in_process(
            f"Bertron {dtype}, from texts",
            dtype,
            lambda batch: ours.embed_texts(batch.texts),
            needs_texts=True,
        ),
    ]


def transformers(checkpoint: Checkpoint, dtype: str) -> Engine:
    """AutoModel with its default attention, a normalised mean, and padding."""
    model = AutoModel.from_pretrained(checkpoint.directory, dtype=getattr(torch, dtype)).eval()

    @torch.inference_mode()
    def embed(batch: Batch) -> np.ndarray:
        ids, mask = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
        kept = mask[:, :, None]
        mean = (hidden.float() * kept).sum(1) / kept.sum(1)
        return torch.nn.functional.normalize(mean, dim=1).numpy()

    return in_process(f"transformers {dtype}", dtype, embed)


def sentence_transformers(checkpoint: Checkpoint) -> list[Engine]:
    """All texts in one call, which it sorts by length, and a call a batch; both from texts."""
    model = SentenceTransformer(str(checkpoint.directory), device="cpu")
    encode = functools.partial(model.encode, batch_size=BATCH, show_progress_bar=False)
    own_sorting = Engine(
        "sentence-transformers, its own sorting, from texts",
        "float32",
        vectors=lambda workload: encode(workload.texts),
        seconds=lambda workload: seconds(lambda: encode(workload.texts)),
        needs_texts=True,
    )
    unsorted = in_process(
        "sentence-transformers, a call a batch, from texts",
        "float32",
        lambda batch: encode(list(batch.texts)),
        needs_texts=True,
    )
    return [own_sorting, unsorted]


# Key in the peers' process, name in the tables, dtype: both pad to the batch's longest.
PEERS = (
    ("openvino", "OpenVINO bfloat16", "bfloat16"),
    ("onnxruntime", "ONNX Runtime int8", "int8"),
)


def peers(process: Peers) -> list[Engine]:
    """What runs in the peers' process; its model must be loaded."""
    return [
        Engine(
            name,
            dtype,
            vectors=lambda workload, key=key: process.vectors(key, workload),
            seconds=lambda _workload, key=key: process.seconds(key),
        )
        for key, name, dtype in PEERS
    ]
