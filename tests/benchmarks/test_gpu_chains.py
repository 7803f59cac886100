"""What serves while a chain is captured, and what is said of it."""

import gpu_chains
import gpu_models
import pytest
import torch
from bertron_kernels import gpu_linear, overlap
from bertron_kernels.gemm import CANDIDATES, GELU
from gpu_chains import AS_NOW, ENGINES, FOUND, OVERLAPPED, Tables
from gpu_report import Row

CPU = torch.device("cpu")
KEY = (GELU, 90, 80, 48, 16)


def row(model, tokens, engine, ms) -> Row:
    return Row("tune", model, f"1 x {tokens}", "float16", engine, times_ms=[ms] if ms else [])


def rows(times) -> list[Row]:
    """Of (found, overlapped) times by model and tokens."""
    return [
        row(model, tokens, engine, ms)
        for (model, tokens), both in times.items()
        for engine, ms in zip((FOUND, OVERLAPPED), both, strict=True)
    ]


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


def test_each_engine_is_prepared_under_its_own_tables():
    seen = []

    def engine(batch):
        seen.append((gpu_linear.MEASURED, overlap.OVERLAPPED_TOKENS))
        return lambda: batch

    before = gpu_linear.MEASURED, overlap.OVERLAPPED_TOKENS
    tables = Tables({KEY: CANDIDATES[0]})
    engines = gpu_chains.engines_of(engine, 90, 128, tables)
    assert tuple(engines) == ENGINES
    assert [engines[name]("tokens")() for name in ENGINES] == ["tokens"] * 3
    assert seen == [before, (tables.products, before[1]), (tables.products, {90: 128})]


def test_overlapping_is_for_as_many_tokens_as_every_model_gains_at():
    gains, loses = (1.0, 0.8), (1.0, 0.99)
    every = {(model, tokens): gains for model in ("a", "b") for tokens in (16, 32, 64, 128, 256)}
    assert gpu_chains.most_overlapped_tokens(rows(every)) == 256
    assert gpu_chains.most_overlapped_tokens(rows(every | {("b", 128): loses})) == 64
    assert gpu_chains.most_overlapped_tokens(rows(every | {("a", 64): (1.0, None)})) == 32
    assert gpu_chains.most_overlapped_tokens(rows(every | {("a", 16): loses})) == 0
    assert gpu_chains.most_overlapped_tokens([]) == 0


def test_models_are_checked_and_timed_under_the_tables(monkeypatch):
    monkeypatch.setitem(gpu_models.SIZES, "Tiny", (2, 48, 3, 80))
    monkeypatch.setattr(gpu_models, "ROUNDS", 2)
    monkeypatch.setattr(gpu_models, "LATENCIES", 2)
    monkeypatch.setattr(gpu_chains, "MODELS", ("Tiny",))
    monkeypatch.setattr(gpu_chains, "TOKENS", (9, 5))
    monkeypatch.setattr(gpu_chains, "DTYPE", "float32")
    monkeypatch.setattr(gpu_chains, "graph_engine", gpu_models.packed_engine)
    found, lines = [], []
    gpu_chains.measure_all(CPU, 90, Tables({}), found.append, lines.append)
    assert [(r.shape, r.engine) for r in found] == [
        (shape, engine) for shape in ("1 x 9", "1 x 5") for engine in ENGINES
    ]
    assert not any(r.failed for r in found)
    assert all(r.part == "tune" and r.is_ours and r.ms and r.cosine > 0.99999 for r in found)
    assert [line.split(" ms")[0] for line in lines[:2]] == ["# Tiny, 1 x 9,", "# Tiny, 1 x 5,"]
    assert all(f"{name} 0." in lines[0] for name in (AS_NOW, FOUND, OVERLAPPED))
    assert lines[-1].startswith("OVERLAPPED_TOKENS = {90: ")
