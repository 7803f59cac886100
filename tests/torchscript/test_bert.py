"""The module against transformers, in every architecture and every form of its input."""

import pytest
import torch
from bertron_torchscript.checkpoint import POOLING_MODES, Pooling, read_checkpoint
from bertron_torchscript.export import build
from bertron_torchscript.model_file import load, no_profiling, pack, save
from bertron_torchscript.verification import pool_reference
from tiny_checkpoints import ARCHITECTURES, make_checkpoint
from torch import Tensor
from transformers import AutoModel

# Awkward lengths: one token, two, a prime, the longest the tiny models take.
LENGTHS = (1, 17, 2, 64, 7)
MEAN = Pooling("mean", normalize=False)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(request, tmp_path_factory):
    """(our module with mean pooling, transformers' model, configuration)."""
    directory = make_checkpoint(tmp_path_factory.mktemp(request.param), request.param)
    checkpoint = read_checkpoint(str(directory), pooling="mean", normalize=False)
    ours, _ = build(checkpoint, checkpoint.config.num_layers)
    pack(ours)
    reference = AutoModel.from_pretrained(directory, attn_implementation="eager").eval()
    return ours, reference, checkpoint


def texts(vocab_size: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    # From 5 on: the padding id has a meaning of its own in RoBERTa, tested below.
    return [torch.randint(5, vocab_size, (length,), generator=generator) for length in LENGTHS]


def packed(
    ids: list[Tensor], types: list[Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor, int]:
    flat = torch.cat(ids).to(torch.int32)
    lengths = torch.tensor([0, *map(len, ids)])
    flat_types = torch.zeros_like(flat) if types is None else torch.cat(types).to(torch.int32)
    return flat, flat_types, lengths.cumsum(0).to(torch.int32), int(lengths.max())


def padded(ids: list[Tensor], to: int = 0, left: bool = False) -> tuple[Tensor, Tensor]:
    width = max(to, max(map(len, ids)))
    out = torch.full((len(ids), width), 3, dtype=torch.int32)  # junk that must not be read
    mask = torch.zeros_like(out)
    for row, values in enumerate(ids):
        place = slice(width - len(values), None) if left else slice(len(values))
        out[row, place] = values.to(torch.int32)
        mask[row, place] = 1
    return out, mask


def reference_embeddings(model, ids: list[Tensor], pooling=MEAN, layer=-1, **extra):
    with torch.no_grad():
        states = [
            model(values[None], output_hidden_states=True, **extra).hidden_states for values in ids
        ]
    return torch.stack([pool_reference(state[layer][0], pooling) for state in states])


def assert_same(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert found.dtype == torch.float32
    error = (found.double() - expected.double()).norm() / expected.double().norm()
    assert error < tolerance, f"relative error {error:.2e}"


@torch.inference_mode()
def test_packed_equals_transformers(pair):
    ours, reference, checkpoint = pair
    ids = texts(checkpoint.config.vocab_size)
    assert_same(ours.forward_packed(*packed(ids)), reference_embeddings(reference, ids))


@torch.inference_mode()
def test_padded_equals_packed_however_much_padding(pair):
    ours, _, checkpoint = pair
    ids = texts(checkpoint.config.vocab_size)
    expected = ours.forward_packed(*packed(ids))
    for width, left in ((0, False), (100, False), (80, True)):
        batch, mask = padded(ids, width, left)
        found = ours(batch, mask, torch.zeros_like(batch), torch.zeros(1, 1))
        assert torch.equal(found, expected), f"padded to {width}, left={left}"


@torch.inference_mode()
def test_flat_ragged_equals_packed(pair):
    """Triton server's PyTorch backend: each request's [b, s], flattened, one after the other."""
    ours, _, checkpoint = pair
    ids = texts(checkpoint.config.vocab_size)
    expected = ours.forward_packed(*packed(ids))
    requests = [padded(ids[:2]), padded(ids[2:3], 9), padded(ids[3:])]
    flat = torch.cat([batch.flatten() for batch, _ in requests])
    mask = torch.cat([mask.flatten() for _, mask in requests])
    item_shape = torch.tensor([[b.shape[1]] for b, _ in requests for _ in range(len(b))])
    found = ours(flat, mask, torch.zeros_like(flat), item_shape.to(torch.int32))
    assert torch.equal(found, expected)


@torch.inference_mode()
def test_a_batch_equals_each_text_alone(pair):
    ours, _, checkpoint = pair
    ids = texts(checkpoint.config.vocab_size)
    alone = torch.cat([ours.forward_packed(*packed([values])) for values in ids])
    assert_same(ours.forward_packed(*packed(ids)), alone, 1e-6)


@torch.inference_mode()
def test_scripted_saved_and_loaded_is_the_same(pair, tmp_path):
    ours, _, checkpoint = pair
    arguments = packed(texts(checkpoint.config.vocab_size))
    save(build(checkpoint, checkpoint.config.num_layers)[0], tmp_path / "model.pt")
    loaded = load(tmp_path / "model.pt")
    with no_profiling():
        assert torch.equal(loaded.forward_packed(*arguments), ours.forward_packed(*arguments))
        ids, types, cu_seqlens, longest = arguments
        positions = ours._position_ids(ids, cu_seqlens)
        found = loaded.forward_positions(ids, types, positions, cu_seqlens, longest)
        assert torch.equal(found, ours.forward_packed(*arguments))
    # What a caller numbers the positions by.
    assert loaded.position_offset == checkpoint.config.position_offset
    assert loaded.pad_token_id == checkpoint.config.pad_token_id
    names = [argument.name for argument in loaded.forward.schema.arguments[1:]]
    assert names == ["input_ids", "attention_mask", "token_type_ids", "item_shape"]


@torch.inference_mode()
def test_known_positions_are_taken_as_they_are(pair):
    ours, _, checkpoint = pair
    ids, types, cu_seqlens, longest = packed(texts(checkpoint.config.vocab_size))
    expected = ours.forward_packed(ids, types, cu_seqlens, longest)
    positions = ours._position_ids(ids, cu_seqlens)
    for dtype in (torch.int64, torch.int32):
        found = ours.forward_positions(ids, types, positions.to(dtype), cu_seqlens, longest)
        assert torch.equal(found, expected)
    found = ours.forward_positions(ids, types, positions.flip(0), cu_seqlens, longest)
    assert not torch.allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("mode", POOLING_MODES)
@torch.inference_mode()
def test_with_known_positions_no_value_of_a_tensor_is_read(mode, tmp_path):
    """Meta tensors have no values: what waits for a GPU, which no graph can hold, fails on them."""
    checkpoint = read_checkpoint(
        str(make_checkpoint(tmp_path, "bert")), pooling=mode, normalize=True
    )
    ours = build(checkpoint, 2)[0].to("meta")
    ids, cu_seqlens = (torch.zeros(n, dtype=torch.int32, device="meta") for n in (128, 17))
    found = ours.forward_positions(ids, ids, ids, cu_seqlens, 64)
    assert found.shape == (16, 96 if mode == "mean-max" else 48)
    padded_ids = ids.view(2, 64)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):  # it asks for lengths
        ours(padded_ids, padded_ids, padded_ids, torch.zeros(2, 1, device="meta"))


@pytest.mark.parametrize("mode", POOLING_MODES)
@torch.inference_mode()
def test_tokens_and_texts_of_padding_change_no_other_text(mode, tmp_path):
    """A batch padded to a fixed shape; the CPU's ops want the padding in a text, so it has some."""
    checkpoint = read_checkpoint(
        str(make_checkpoint(tmp_path, "bert")), pooling=mode, normalize=False
    )
    ours, _ = build(checkpoint, 2)
    pack(ours)
    ids, types, cu_seqlens, longest = packed(texts(checkpoint.config.vocab_size))
    expected = ours.forward_packed(ids, types, cu_seqlens, longest)
    positions = ours._position_ids(ids, cu_seqlens)
    tokens = len(ids)
    zeros = torch.zeros(128 - tokens, dtype=torch.int32)
    found = ours.forward_positions(
        torch.cat([ids, zeros]),
        torch.cat([types, zeros]),
        torch.cat([positions, zeros]),
        torch.cat([cu_seqlens, torch.tensor([tokens, 128, 128, 128], dtype=torch.int32)]),
        64,
    )
    assert_same(found[: len(expected)], expected, 1e-6)
    assert found.isfinite().all()


@torch.inference_mode()
def test_token_types_are_used_where_the_model_has_them(pair):
    ours, reference, checkpoint = pair
    ids = texts(checkpoint.config.vocab_size)[1:2]
    types = [torch.arange(17) // 9]
    if checkpoint.config.type_vocab_size == 2:
        expected = reference_embeddings(reference, ids, token_type_ids=types[0][None])
        assert_same(ours.forward_packed(*packed(ids, types)), expected)
        assert not torch.allclose(
            ours.forward_packed(*packed(ids, types)), ours.forward_packed(*packed(ids)), atol=1e-3
        )
    elif checkpoint.config.type_vocab_size == 0:
        found = ours.forward_packed(*packed(ids, types))
        assert torch.equal(found, ours.forward_packed(*packed(ids)))


@torch.inference_mode()
def test_a_text_that_spells_the_padding_token_is_numbered_as_transformers_does(pair):
    ours, reference, checkpoint = pair
    ids = texts(checkpoint.config.vocab_size)
    for values in ids[1:]:
        values[len(values) // 2] = checkpoint.config.pad_token_id
    # transformers masks nothing here: the mask is the tokenizer's, and it is all ones.
    expected = torch.cat(
        [reference_embeddings(reference, [v], attention_mask=torch.ones(1, len(v))) for v in ids]
    )
    assert_same(ours.forward_packed(*packed(ids)), expected)


@pytest.mark.parametrize("mode", POOLING_MODES)
@pytest.mark.parametrize("normalize", [False, True])
@torch.inference_mode()
def test_pooling_equals_float64(mode, normalize, tmp_path):
    directory = make_checkpoint(tmp_path, "bert")
    checkpoint = read_checkpoint(str(directory), pooling=mode, normalize=normalize)
    ours, _ = build(checkpoint, 2)
    pack(ours)
    reference = AutoModel.from_pretrained(directory, attn_implementation="eager").eval()
    ids = texts(checkpoint.config.vocab_size)
    found = ours.forward_packed(*packed(ids))
    assert found.shape == (len(ids), 96 if mode == "mean-max" else 48)
    assert_same(found, reference_embeddings(reference, ids, checkpoint.pooling))
    if normalize:
        assert torch.allclose(found.norm(dim=1), torch.ones(len(ids)), atol=1e-6)


@pytest.mark.parametrize("kept", [0, 1, 2])
@torch.inference_mode()
def test_pruned_layers_give_transformers_hidden_state(kept, tmp_path):
    directory = make_checkpoint(tmp_path, "bert")
    checkpoint = read_checkpoint(str(directory), pooling="mean", normalize=False)
    ours, _ = build(checkpoint, kept)
    pack(ours)
    assert len(ours.layers) == kept
    reference = AutoModel.from_pretrained(directory, attn_implementation="eager").eval()
    ids = texts(checkpoint.config.vocab_size)
    assert_same(ours.forward_packed(*packed(ids)), reference_embeddings(reference, ids, layer=kept))
