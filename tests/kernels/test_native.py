"""What the CPU library must withstand beyond each op's own tests."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from bertron_kernels import (
    add_layer_norm_reference,
    bias_gelu_reference,
    pool_reference,
    varlen_attention_reference,
)
from bertron_kernels.arguments import POOLING_MODES

EPS = 1e-12
DTYPES = [torch.float32, torch.bfloat16]
GATES = {torch.float32: 1e-5, torch.bfloat16: 4e-3}

# Around a vector of 16, a panel of 64 and a tile of 6 rows; nothing.
LENGTHS = [1, 2, 15, 16, 17, 0, 63, 64, 65, 0]


# MiniLM, base and wide; two that fill no vector, one of half a bf16 word.
@pytest.mark.parametrize("head_dim", [32, 64, 128, 80, 26, 13])
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_takes_any_head_dim(cpu, randn, packed, head_dim, dtype):
    qkv = randn(sum(LENGTHS), 3, 2, head_dim, dtype=dtype)
    arguments = (packed(LENGTHS), max(LENGTHS), head_dim**-0.5)
    out = cpu.run("varlen_attention", qkv, *arguments)
    exact = varlen_attention_reference(qkv.double(), *arguments)
    assert (out.double() - exact).norm() <= GATES[dtype] * exact.norm()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("part", [0, 1, 2], ids=["query", "key", "value"])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_a_wrong_number_stays_in_its_sequence(cpu, randn, packed, dtype, part, wrong):
    qkv = randn(60, 3, 2, 26, dtype=dtype)
    expected = cpu.run("varlen_attention", qkv, packed([17, 3, 40]), 40, 0.2)
    qkv[18, part, 1, 25] = wrong
    out = cpu.run("varlen_attention", qkv, packed([17, 3, 40]), 40, 0.2)
    assert torch.equal(out[:17], expected[:17])
    assert torch.equal(out[20:], expected[20:])
    assert torch.equal(out[17:20, 0], expected[17:20, 0])  # the other head
    if part == 0:
        assert out[18, 1].isnan().all()
        assert torch.equal(out[17, 1], expected[17, 1])
    elif wrong is torch.nan or part == 2:
        assert not out[17:20, 1, 25].isfinite().any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_of_any_size_give_weights(cpu, randn, packed, dtype):
    # One key far above, all far below zero, all the same, and a softmax that ignores the scores.
    qkv = randn(20, 3, 1, 32, dtype=dtype)
    arguments = (packed([20]), 20)
    for scale in (0.0, 1e-6, 1e4, 1e10, 1e20):
        out = cpu.run("varlen_attention", qkv, *arguments, scale)
        exact = varlen_attention_reference(qkv.double(), *arguments, scale)
        assert (out.double() - exact).norm() <= 5e-3 * exact.norm()
    qkv[:, 0], qkv[:, 1] = 1e3, -1e3
    out = cpu.run("varlen_attention", qkv, *arguments, 1.0)
    torch.testing.assert_close(out[0], qkv[:, 2].float().mean(0).to(dtype), rtol=1e-2, atol=1e-3)


def test_softmax_scales_that_make_no_sense_are_refused(library, packed, refused):
    for scale in (-1.0, torch.nan, torch.inf):
        with refused(f"softmax_scale is {scale:g}, expected a finite number of at least 0"):
            library.run("varlen_attention", torch.zeros(4, 3, 1, 32), packed([4]), 4, scale)


def test_gelu_is_as_exact_as_pytorch(cpu):
    x = torch.linspace(-10, 10, 400_001)[None]
    exact = bias_gelu_reference(x.double(), None)
    error = (cpu.run("bias_gelu", x, None) - exact).abs().max()
    assert error <= 2 * (F.gelu(x) - exact).abs().max()


def test_gelu_of_large_numbers(cpu):
    # Phi must be exactly 0 far below zero, or what is left grows with x; at -7 GELU is -9e-12.
    x = torch.tensor([[-1e30, -1e4, -100.0, -14.0, -7.0, 7.0, 14.0, 100.0, 1e4, 1e30, torch.nan]])
    out = cpu.run("bias_gelu", x, None)
    assert torch.equal(out[:, :3], torch.zeros(1, 3))
    assert (out[:, 3:5].abs() < 1e-10).all()
    assert torch.equal(out[:, 5:10], x[:, 5:10])
    assert out[:, 10].isnan().all()


# Not a multiple of 16, and of one value.
@pytest.mark.parametrize("hidden_size", [26, 384, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_nan_leaves_the_others(cpu, randn, packed, hidden_size, dtype):
    x, row = randn(20, hidden_size, dtype=dtype), randn(hidden_size, dtype=dtype)
    x[7, -1] = torch.nan
    others = [i for i in range(20) if i != 7]
    out = cpu.run("add_layer_norm", x, x, row, row, row, EPS)
    exact = add_layer_norm_reference(*(t.double() for t in (x, x, row, row, row)), EPS)
    assert out[7].isnan().all()
    error = (out[others].double() - exact[others]).norm()
    assert error <= GATES[dtype] * exact[others].norm()
    for mode in POOLING_MODES:
        pooled = cpu.run("pool", x, packed([7, 2, 11]), mode, False)
        expected = pool_reference(x.double(), packed([7, 2, 11]), mode, False).float()
        torch.testing.assert_close(pooled, expected, equal_nan=True, rtol=1e-5, atol=1e-5)


def calls(randn, packed, dtype):
    """Every op that is no product, at sizes that fill no vector."""
    x, row = randn(103, 90, dtype=dtype), randn(90, dtype=dtype)
    qkv = randn(103, 3, 3, 26, dtype=dtype)
    lengths = packed([40, 1, 0, 62])
    ids = torch.arange(103) % 20
    table = randn(20, 90, dtype=dtype)
    return {
        "varlen_attention": (qkv, lengths, 62, 0.2),
        "add_layer_norm": (x, x, row, row, row, EPS),
        "bias_gelu": (x, row),
        "embedding_layer_norm": (ids, ids, None, table, table, table, row, row, EPS),
        "pool": (x, lengths, "mean-max", True),
    }


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_number_of_threads_changes_nothing(library, randn, packed, dtype):
    for op, arguments in calls(randn, packed, dtype).items():
        one = library.run(op, *arguments, num_threads=1)
        assert torch.equal(library.run(op, *arguments, num_threads=2), one), op


@pytest.mark.parametrize("dtype", DTYPES)
def test_eight_callers_at_once_all_get_the_result(library, randn, packed, dtype):
    for op, arguments in calls(randn, packed, dtype).items():
        expected = library.run(op, *arguments)
        outs = library.run(op, *arguments, callers=8)
        assert torch.equal(outs, expected.expand_as(outs)), op


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_library_refuses_other_dtypes_that_eager_takes(
    library, on_cpu, randn, packed, refused, dtype
):
    for op, arguments in calls(randn, packed, dtype).items():
        with refused(f"has dtype {dtype}, expected torch.float32 or torch.bfloat16"):
            library.run(op, *arguments)
        assert on_cpu("eager").run(op, *arguments).isfinite().all()


def test_a_table_without_rows_is_refused(library, refused):
    ids, row = torch.zeros(3, dtype=torch.int64), torch.ones(8)
    table, no_rows = torch.ones(2, 8), torch.ones(0, 8)
    with refused("position_ids has id 0, expected 0 to -1"):
        library.run("embedding_layer_norm", ids, ids, None, table, no_rows, None, row, row, EPS)
    with refused("token_type_embeddings has no rows"):
        library.run("embedding_layer_norm", ids, ids, None, table, table, no_rows, row, row, EPS)


def imported_with(**environment):
    program = "import bertron_kernels; print(bertron_kernels.implementation('cpu'))"
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_an_unknown_choice_is_named():
    done = imported_with(BERTRON_CPU_KERNELS="sse2")
    assert "BERTRON_CPU_KERNELS is 'sse2', expected eager, avx2, avx512_vnni" in done.stderr


@pytest.mark.parametrize("broken", [False, True], ids=["absent", "broken"])
def test_a_library_that_is_named_serves_or_is_an_error(tmp_path, broken):
    path = tmp_path / "another.so"
    if broken:
        path.write_text("no library")
    done = imported_with(BERTRON_CPU_LIBRARY=str(path), BERTRON_CPU_KERNELS="")
    assert done.returncode == 1
    assert f"BERTRON_CPU_LIBRARY is '{path}', but the library does not load: {path}" in done.stderr
    eager = imported_with(BERTRON_CPU_LIBRARY=str(path), BERTRON_CPU_KERNELS="eager")
    assert eager.stdout.strip() == "eager", eager.stderr


def test_instructions_that_are_named_serve_or_are_an_error():
    # What PyTorch then says of a machine without AVX2.
    no_avx2 = {"ATEN_CPU_CAPABILITY": "default", "BERTRON_CPU_LIBRARY": ""}
    done = imported_with(BERTRON_CPU_KERNELS="avx2", **no_avx2)
    assert "BERTRON_CPU_KERNELS is 'avx2', but the library does not load: PyTorch's" in done.stderr
    assert imported_with(BERTRON_CPU_KERNELS="", **no_avx2).stdout.strip() == "eager"


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
def test_where_linux_refuses_amx_the_next_best_serves(emulated_library):
    emulated = {"BERTRON_CPU_LIBRARY": str(emulated_library), "BERTRON_CPU_KERNELS": ""}
    allowed, refused = imported_with(**emulated), imported_with(**emulated, EMULATE_REFUSAL="1")
    assert allowed.stdout.strip() == "amx", allowed.stderr
    assert refused.stdout.strip() == "avx512_bf16", refused.stderr
    emulated["BERTRON_CPU_KERNELS"] = "amx"
    insisted = imported_with(**emulated, EMULATE_REFUSAL="1")
    assert "this machine does not offer the instructions of amx" in insisted.stderr
