import pytest
import torch
import torch.nn.functional as F
from bertron_kernels import embedding_layer_norm_reference

EPS = 1e-12


def draw_tables(randn, hidden_size, dtype):
    """Words, positions, token types, weight, bias."""
    sizes = ((1000, hidden_size), (512, hidden_size), (2, hidden_size))
    return (
        *(randn(*size, dtype=dtype) for size in sizes),
        randn(hidden_size, dtype=dtype),
        randn(hidden_size, dtype=dtype),
    )


def draw_ids(num_tokens, dtype):
    generator = torch.Generator().manual_seed(1)
    tables = (1000, 512, 2)
    ids = [torch.randint(rows, (num_tokens,), generator=generator).to(dtype) for rows in tables]
    ids[0][0], ids[1][0] = 999, 511  # the last row of each table is reachable
    return ids


# One token; an odd number; MiniLM, base, large and an odd hidden size; both id dtypes.
@pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("num_tokens", "hidden_size"), [(1, 384), (63, 768), (5, 1024), (9, 331)])
def test_embeddings_agree_with_float64(implementation, randn, num_tokens, hidden_size, ids_dtype):
    words, positions, types, weight, bias = draw_tables(randn, hidden_size, implementation.dtype)
    ids = draw_ids(num_tokens, ids_dtype)
    arguments = (*ids, words, positions, types, weight, bias)
    out = implementation.run("embedding_layer_norm", *arguments, EPS)
    exact = embedding_layer_norm_reference(*ids, *(t.double() for t in arguments[3:]), EPS)
    total = sum(F.embedding(i, table) for i, table in zip(ids, arguments[3:6], strict=True))
    implementation.check(out, exact, F.layer_norm(total, (hidden_size,), weight, bias, EPS))


def test_a_model_without_token_types(implementation, randn):
    words, positions, _, weight, bias = draw_tables(randn, 64, implementation.dtype)
    ids = draw_ids(7, torch.int32)[:2]
    out = implementation.run(
        "embedding_layer_norm", *ids, None, words, positions, None, weight, bias, EPS
    )
    tables = (words.double(), positions.double(), None, weight.double(), bias.double())
    implementation.check(out, embedding_layer_norm_reference(*ids, None, *tables, EPS))


def test_token_types_not_given_are_all_zero(run, randn):
    tables = draw_tables(randn, 64, torch.float32)
    ids = draw_ids(7, torch.int64)
    ids[2] = torch.zeros_like(ids[2])
    expected = run("embedding_layer_norm", *ids, *tables, EPS)
    ids[2] = None
    assert torch.equal(run("embedding_layer_norm", *ids, *tables, EPS), expected)


@pytest.mark.parametrize("wrong_id", [-1, 1000, 2**31 - 1])
def test_the_cpu_names_an_id_outside_its_table(cpu, randn, wrong_id, refused):
    tables = draw_tables(randn, 64, torch.float32)
    ids = draw_ids(7, torch.int32)
    ids[0][3] = wrong_id
    with refused(f"input_ids has id {wrong_id}, expected 0 to 999"):
        cpu.run("embedding_layer_norm", *ids, *tables, EPS)


@pytest.mark.parametrize("wrong_id", [-1, 1000, 2**31 - 1])
def test_a_kernel_reads_nothing_for_an_id_outside_its_table(run_kernel, randn, wrong_id):
    words, positions, types, weight, bias = draw_tables(randn, 64, torch.float32)
    ids = draw_ids(7, torch.int32)
    ids[0][3] = wrong_id
    out = run_kernel("embedding_layer_norm", *ids, words, positions, types, weight, bias, EPS)
    total = positions[ids[1][3]] + types[ids[2][3]]
    torch.testing.assert_close(out[3], F.layer_norm(total, (64,), weight, bias, EPS))


def test_no_tokens_give_no_tokens(run, randn):
    ids = [torch.empty(0, dtype=torch.int32)] * 3
    out = run("embedding_layer_norm", *ids, *draw_tables(randn, 64, torch.float32), EPS)
    assert out.shape == (0, 64)


def test_wrong_arguments_are_named(run, randn, refused):
    words, *others = draw_tables(randn, 64, torch.float32)
    ids = draw_ids(7, torch.int32)
    with refused(r"position_ids has shape \[6\], expected \[7\]"):
        run("embedding_layer_norm", ids[0], ids[1][:6], ids[2], words, *others, EPS)
    with refused(r"input_ids has dtype torch.float32, expected torch.int3"):
        run("embedding_layer_norm", ids[0].float(), *ids[1:], words, *others, EPS)
    with refused(r"position_embeddings has shape \[512, 64\].*\[512, 63\]"):
        run("embedding_layer_norm", *ids, words[:, :63].contiguous(), *others, EPS)
    with refused("token_type_ids came without token_type_embeddings"):
        run("embedding_layer_norm", *ids, words, others[0], None, *others[2:], EPS)
    with refused(r"token_type_ids has strides \[0\].*contiguous"):
        run("embedding_layer_norm", *ids[:2], ids[2][:1].expand(7), words, *others, EPS)
