"""A small encoder through the models' own code, on the CPU."""

import gpu_models
import numpy as np
import pytest
import torch
from bertron_torchscript.model_file import MODEL_FILE, load
from gpu_models import EAGER, SERVED, TRANSFORMERS
from gpu_report import Row

CPU = torch.device("cpu")
SIZE = (2, 48, 3, 80)
LENGTHS = [5, 33, 1, 17]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return gpu_models.random_model(*SIZE, vocab_size=400, max_position_embeddings=64)


@pytest.fixture(scope="module")
def directory(model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    gpu_models.write_ours(model, "float32", directory)
    return directory


def expected_of(model, batch) -> np.ndarray:
    reference = gpu_models.peer_of(model, "float64", CPU, "eager")
    with torch.no_grad():
        return gpu_models.embed_padded(reference, batch.input_ids, batch.attention_mask).numpy()


def test_packed_and_padded_are_the_same_texts():
    batch = gpu_models.make_batch("", LENGTHS, 400, CPU)
    ids, types, positions, starts = batch.sections(batch.packed)
    assert batch.attention_mask.sum(1).tolist() == LENGTHS
    assert torch.equal(ids, batch.input_ids[batch.attention_mask != 0].int())
    assert starts.tolist() == [0, 5, 38, 39, 56]
    assert positions[5:38].tolist() == list(range(33))
    assert not types.any()
    assert batch.max_seqlen == 33
    np.testing.assert_array_equal(batch.request.input_ids, batch.input_ids.numpy())


def test_every_section_begins_at_an_aligned_address():
    batch = gpu_models.make_batch("", LENGTHS, 400, CPU)
    first = batch.packed.data_ptr()
    bytes_each = 4 * gpu_models.ALIGNMENT
    assert all((s.data_ptr() - first) % bytes_each == 0 for s in batch.sections(batch.packed))


def test_uniform_batches_have_no_mask():
    assert gpu_models.make_batch("", [7, 7], 400, CPU).attention_mask is None


@pytest.mark.parametrize("lengths", [LENGTHS, [16] * 4, [1]])
def test_all_engines_agree_with_float64_and_are_timed(model, directory, lengths, monkeypatch):
    monkeypatch.setattr(gpu_models, "ROUNDS", 2)
    monkeypatch.setattr(gpu_models, "ROUND_S", 0.002)
    monkeypatch.setattr(gpu_models, "LATENCIES", 2)
    batch = gpu_models.make_batch("some texts", lengths, 400, CPU)
    engines = {
        EAGER: gpu_models.packed_engine(load(directory / MODEL_FILE, CPU)),
        SERVED: gpu_models.served_engine(gpu_models.server_encoder(directory, CPU)),
        TRANSFORMERS: gpu_models.padded_engine(gpu_models.peer_of(model, "float32", CPU, "sdpa")),
    }
    rows = gpu_models.measure(
        "small", "float32", batch, engines, expected_of(model, batch), (2, 48, 80), CPU
    )
    assert [row.engine for row in rows] == list(engines)
    assert {row.problem for row in rows} == {""}
    assert max(row.error for row in rows) < 1e-5
    assert all(len(row.times_ms) == 2 and len(row.latencies_ms) == 2 for row in rows)
    assert [row.is_ours for row in rows] == [True, True, False]


def test_a_wrong_engine_is_not_timed_and_one_of_ours_fails(model):
    batch = gpu_models.make_batch("some texts", LENGTHS, 400, CPU)
    expected = expected_of(model, batch)
    engines = {
        EAGER: lambda _batch: lambda: torch.from_numpy(np.roll(expected, 1)),
        TRANSFORMERS: lambda _batch: lambda: torch.from_numpy(expected),
    }
    wrong, right = gpu_models.measure(
        "small", "float32", batch, engines, expected, (2, 48, 80), CPU
    )
    assert wrong.failed
    assert wrong.problem.startswith("cosine")
    assert not wrong.times_ms
    assert right.times_ms


def test_an_engine_that_is_not_ready_in_time_is_left_out(model):
    batch = gpu_models.make_batch("some texts", [3], 400, CPU)
    expected = expected_of(model, batch)

    def compiling(_batch):
        import time

        time.sleep(20)

    engines = {"peer": compiling, TRANSFORMERS: lambda _batch: lambda: torch.tensor(expected)}
    late, right = gpu_models.measure(
        "small", "float32", batch, engines, expected, (2, 48, 80), CPU, compile_s=0.2
    )
    assert late.problem == "not ready after 0 s"
    assert not late.failed
    assert right.times_ms


def test_gates_bound_the_distance_of_vectors_as_well_as_their_cosine():
    row = Row("models", "small", "", "float16", EAGER)
    exact = np.eye(3)
    assert gpu_models.problem_of(exact * 1.001, exact, "float16", row, None) == ""
    problem = gpu_models.problem_of(exact * 1.1, exact, "float16", row, None)
    assert problem.startswith("cosine 1.000000")


def test_an_engine_may_be_twice_as_far_off_as_transformers():
    row = Row("models", "small", "", "float16", EAGER)
    exact = np.eye(3)
    assert gpu_models.problem_of(exact * 1.001, exact, "float16", row, 0.0006) == ""
    assert gpu_models.problem_of(exact * 1.001, exact, "float16", row, 0.0004)
    assert gpu_models.problem_of(exact * 1.000001, exact, "float16", row, 0.0) == ""


def test_shapes_begin_with_what_the_targets_name():
    names = [name for name, _ in gpu_models.shapes(list(range(3, 303)), quick=False)]
    assert names[:2] == ["1 x 128", "32 x 128"]
    assert names[2].startswith("32 real texts, ")
    assert names[3].startswith("1 real text, ")
    assert len(names) == 6
