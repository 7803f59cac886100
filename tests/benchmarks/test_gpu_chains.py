"""What serves while a chain is captured, and what is said of it."""

import itertools

import gpu_chains
import gpu_models
import pytest
import torch
from bertron_kernels import gpu_linear, overlap
from bertron_kernels.gemm import CANDIDATES, GELU
from gpu_chains import (
    AS_NOW,
    ENGINES,
    FOUND,
    FOUND_OVERLAPPED,
    OURS,
    OURS_OVERLAPPED,
    Chains,
    Tables,
)
from gpu_report import Row

CPU = torch.device("cpu")
KEY, OTHER = (GELU, 90, 80, 48, 16), (GELU, 90, 80, 48, 32)


def test_tables_are_in_use_for_a_while():
    before = gpu_linear.MEASURED, overlap.OVERLAPPED_TOKENS
    with Tables({KEY: CANDIDATES[0]}, {90: 64}).in_use():
        assert gpu_linear.measured_tile(*KEY[:-1], 9) is CANDIDATES[0]
        assert overlap.OVERLAPPED_TOKENS == {90: 64}
    after = gpu_linear.MEASURED, overlap.OVERLAPPED_TOKENS
    assert after == before


def test_an_error_leaves_the_tables_as_they_were():
    before = gpu_linear.MEASURED
    with pytest.raises(KeyError, match="gone"), Tables({}).in_use():
        raise KeyError("gone")
    assert gpu_linear.MEASURED is before


def test_each_engine_is_prepared_under_its_own_tables(monkeypatch):
    frozen = {KEY: CANDIDATES[0]}, {90: 256}
    monkeypatch.setattr(gpu_linear, "MEASURED", frozen[0])
    monkeypatch.setattr(overlap, "OVERLAPPED_TOKENS", frozen[1])
    seen = []

    def engine(batch):
        seen.append((gpu_linear.MEASURED, overlap.OVERLAPPED_TOKENS))
        return lambda: batch

    found = {KEY: CANDIDATES[1], OTHER: CANDIDATES[1]}
    chains = Chains(CPU, 90, found, {KEY: CANDIDATES[2]}, print, print)
    engines = chains.engines(engine, 128)
    assert tuple(engines) == ENGINES
    assert [engines[name]("tokens")() for name in ENGINES] == ["tokens"] * 5
    ours = {KEY: CANDIDATES[2], OTHER: CANDIDATES[1]}
    assert seen == [frozen, (found, {}), (found, {90: 128}), (ours, {}), (ours, {90: 128})]


def rows(times) -> list[Row]:
    """Of (found, found overlapped, ours, ours overlapped) times by model and shape."""
    return [
        Row("tune", model, shape, "float16", engine, times_ms=[ms] if ms else [])
        for (model, shape), four in times.items()
        for engine, ms in zip(ENGINES[1:], four, strict=True)
    ]


def test_overlapping_is_for_as_many_tokens_as_every_model_gains_at():
    gains, loses = (1.0, 0.99, 1.1, 0.8), (0.8, 0.99, 1.0, 0.79)
    shapes = [gpu_chains.shape_of(*shape) for shape in gpu_chains.SHAPES]
    every = dict.fromkeys(itertools.product("ab", shapes), gains)

    def most(**changes):
        changed = {(model, shape): times for model, (shape, times) in changes.items()}
        return gpu_chains.most_overlapped_tokens(rows(every | changed))

    assert most() == 4096
    assert most(b=("32 x 128", loses)) == 256
    assert most(b=("1 x 128", loses)) == 64
    assert most(a=("1 x 64", (1.0, None, 1.0, None))) == 32
    assert most(a=("1 x 64", (1.0, None, 1.0, 0.9))) == 4096
    assert most(a=("1 x 16", loses)) == 0
    assert gpu_chains.most_overlapped_tokens([]) == 0
    one = {both: times for both, times in every.items() if both[1] == "1 x 128"}
    assert gpu_chains.most_overlapped_tokens(rows(one)) == 128


def test_models_are_checked_and_timed_under_the_tables(monkeypatch):
    monkeypatch.setitem(gpu_models.SIZES, "Tiny", (2, 48, 3, 80))
    monkeypatch.setattr(gpu_models, "ROUNDS", 2)
    monkeypatch.setattr(gpu_models, "LATENCIES", 2)
    monkeypatch.setattr(gpu_chains, "MODELS", ("Tiny",))
    monkeypatch.setattr(gpu_chains, "SHAPES", ((1, 9), (2, 5)))
    monkeypatch.setattr(gpu_chains, "DTYPE", "float32")
    monkeypatch.setattr(gpu_chains, "graph_engine", gpu_models.packed_engine)
    found, lines = [], []
    chains = Chains(CPU, 90, {}, {}, found.append, lines.append)
    for shape in gpu_chains.SHAPES:
        chains.measure(*shape)
    chains.close()
    assert [(r.shape, r.engine) for r in found] == [
        (shape, engine) for shape in ("1 x 9", "2 x 5") for engine in ENGINES
    ]
    assert not any(r.failed for r in found)
    assert all(r.part == "tune" and r.is_ours and r.ms and r.cosine > 0.99999 for r in found)
    assert [line.split(" ms")[0] for line in lines[:2]] == ["# Tiny, 1 x 9,", "# Tiny, 2 x 5,"]
    names = (AS_NOW, FOUND, FOUND_OVERLAPPED, OURS, OURS_OVERLAPPED)
    assert all(f"{name} 0." in lines[0] for name in names)
    assert lines[2].startswith("OVERLAPPED_TOKENS = {90: ")
    assert len(lines) == 3


def test_without_a_measurement_nothing_is_said_of_overlapping():
    lines = []
    Chains(CPU, 90, {}, {}, print, lines.append).close()
    assert lines == []
