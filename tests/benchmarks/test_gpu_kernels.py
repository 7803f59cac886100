"""The rows' own code on the CPU, where the ops have other implementations of the same."""

import dataclasses

import gpu_kernels
import pytest
import torch
from gpu_kernels import OURS, Case, Peer
from gpu_work import Work

CPU = torch.device("cpu")
MIXED = [5, 33, 1, 17]
FP32 = torch.float32
PRODUCTS = [(op, 20, inputs, outputs) for op, inputs, outputs in gpu_kernels.products(48, 80)]


def make_cases() -> list[Case]:
    return [
        gpu_kernels.attention([16] * 3, 2, 32, FP32, CPU),
        gpu_kernels.attention(MIXED, 2, 32, FP32, CPU),
        gpu_kernels.add_layer_norm(20, 48, FP32, CPU),
        gpu_kernels.bias_gelu(20, 48, FP32, CPU),
        *(gpu_kernels.product(*sizes, FP32, CPU) for sizes in PRODUCTS),
        gpu_kernels.embedding_layer_norm(MIXED, 48, FP32, CPU),
        gpu_kernels.pool(MIXED, 48, FP32, CPU),
    ]


@pytest.mark.parametrize("case", make_cases(), ids=lambda case: f"{case.op} {case.shape}")
def test_ours_and_every_peer_agree_with_float64(case):
    rows = gpu_kernels.check(case)
    assert next(iter(rows)) == OURS
    assert {row.problem for row in rows.values()} == {""}
    assert max(row.error for row in rows.values()) < 1e-5
    assert not any(row.failed for row in rows.values())


def test_a_bfloat16_product_is_added_to_a_float32_stream():
    case = gpu_kernels.add_layer_norm(20, 48, torch.bfloat16, CPU)
    x, *others, _eps = case.draw()
    assert {tensor.dtype for tensor in others} == {FP32}
    assert x.dtype == torch.bfloat16
    assert max(row.error for row in gpu_kernels.check(case).values()) < 1e-5


def test_every_case_can_be_made_without_a_gpu_and_ours_is_one_of_its_ways():
    cases = list(gpu_kernels.cases(CPU, tokens=gpu_kernels.QUICK_TOKENS))
    assert {case.op for case in cases} == {
        *("varlen_attention", "add_layer_norm", "bias_gelu"),
        *("linear", "linear_gelu", "linear_add_layer_norm", "embedding_layer_norm", "pool"),
    }
    assert len({(case.op, case.shape, case.dtype) for case in cases}) == len(cases)
    assert all(case.work.operations > 0 and case.work.bytes > 0 for case in cases)


def test_the_shapes_that_the_targets_name_are_among_the_cases():
    shapes = {(case.op, case.shape) for case in gpu_kernels.cases(CPU)}
    assert ("varlen_attention", "32 x 512, 12 heads of 64") in shapes
    assert ("varlen_attention", "128 x 128, 12 heads of 64") in shapes
    assert ("add_layer_norm", "16384 x 768") in shapes


def doubling(ours) -> Case:
    return Case(
        "double",
        "4",
        FP32,
        Work(4, 32),
        draw=lambda: (torch.randn(4),),
        ours=ours,
        reference=lambda x: 2 * x,
        peers={"torch": Peer(lambda x: x + x)},
    )


def test_a_wrong_result_fails_and_names_its_error():
    row = gpu_kernels.check(doubling(lambda x: 2.01 * x))[OURS]
    assert row.failed
    assert row.problem == "error 5.0e-03, gate 1e-05"


def test_one_that_breaks_fails_and_says_how():
    def broken(_x):
        raise RuntimeError("out of registers")

    row = gpu_kernels.check(doubling(broken))[OURS]
    assert row.failed
    assert row.problem == "RuntimeError: out of registers"
    assert row.error is None


def test_what_is_not_written_is_not_a_number():
    def forgetful(x):
        out = torch.empty_like(x)
        out[:3] = 2 * x[:3]
        return out

    row = gpu_kernels.check(doubling(forgetful))[OURS]
    assert row.failed
    assert row.problem.startswith("error nan")


def test_a_peer_that_is_wrong_is_no_failure_of_ours():
    case = doubling(lambda x: 2 * x)
    rows = gpu_kernels.check(dataclasses.replace(case, peers={"torch": Peer(lambda x: 3 * x)}))
    assert rows["torch"].problem
    assert not rows["torch"].failed
    assert not rows[OURS].failed


def test_the_largest_error_is_held_against_pytorchs_own():
    exact = torch.zeros(1000, dtype=torch.float64)
    exact[0] = 1000.0
    exact[1] = 1.0
    found = exact.clone()
    found[1] += 4e-3
    assert not gpu_kernels.problem_of(found, exact, FP32)
    plain = exact.clone()
    assert gpu_kernels.problem_of(found, exact, FP32, plain).startswith("largest error")


def test_another_shape_is_a_problem():
    problem = gpu_kernels.problem_of(torch.zeros(2, 1), torch.zeros(2).double(), FP32)
    assert problem == "shape [2, 1], expected [2]"
