"""Whether float16 holds a model's values, and what happens where it does not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bertron_backend.buckets import BUCKETS
from bertron_backend.errors import InferenceError
from bertron_backend.packing import Vocabulary
from bertron_backend.probe import all_finite, probe_batches, random_batch, settle_dtype
from bertron_kernels.attention import length_class
from bertron_kernels.launch import next_power_of_2
from overflowing_checkpoint import make_overflowing_checkpoint
from tiny_checkpoints import make_checkpoint

VOCABULARY = Vocabulary(vocab_size=50, type_vocab_size=2, max_tokens_per_text=300)


class Model:
    """What is loaded in some dtype, and a forward that is finite in some."""

    def __init__(self, dtype, *, finite_in):
        self.dtype = dtype
        self.tried = []
        self._finite_in = finite_in

    def load(self, dtype):
        self.dtype = dtype

    def forward(self, batch):
        self.tried.append(self.dtype)
        rows = np.ones((len(batch.cu_seqlens) - 1, 2), dtype=np.float32)
        if self.dtype not in self._finite_in:
            rows[-1, 1] = np.inf
        return rows


def settled(model):
    batches = [random_batch(lengths, VOCABULARY) for lengths in ([3], [1, 2])]
    settle_dtype(model.dtype, model.load, model.forward, batches)
    return model.dtype


def test_a_model_that_is_finite_keeps_its_dtype(caplog):
    for dtype in ("float16", "bfloat16", "float32"):
        model = Model(dtype, finite_in=[dtype])
        assert settled(model) == dtype
        assert model.tried == [dtype] * 2  # every batch, which compiles what it needs
    assert not caplog.records


def test_float16_that_overflows_becomes_bfloat16_with_a_warning(caplog):
    model = Model("float16", finite_in=["bfloat16"])
    assert settled(model) == "bfloat16"
    assert model.tried == ["float16"] * 2 + ["bfloat16"] * 2
    assert "float16 overflows in this model" in caplog.text


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_what_no_dtype_helps_is_an_error(dtype):
    model = Model(dtype, finite_in=[])
    with pytest.raises(InferenceError, match=r"not finite in (bfloat16|float32)"):
        settled(model)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_is_enough(value):
    def forward(batch):
        rows = np.zeros((len(batch.cu_seqlens) - 1, 4), dtype=np.float32)
        rows[0, 3] = value if len(rows) == 2 else 0
        return rows

    assert all_finite(forward, [random_batch([3], VOCABULARY)])
    assert not all_finite(forward, [random_batch(n, VOCABULARY) for n in ([3, 1], [3])])


def test_batches_are_valid_the_same_every_time_and_of_every_length_class():
    batches = probe_batches(VOCABULARY)
    for batch, again in zip(batches, probe_batches(VOCABULARY), strict=True):
        assert np.array_equal(batch.input_ids, again.input_ids)
        assert batch.input_ids.dtype == batch.token_type_ids.dtype == np.int32
        assert 0 <= batch.input_ids.min() <= batch.input_ids.max() < 50
        assert set(batch.token_type_ids.tolist()) <= {0, 1}
        assert np.diff(batch.cu_seqlens).max() == batch.max_seqlen <= 300
    assert {length_class(batch.max_seqlen) for batch in batches} == {32, 64, 128, 512}
    for name in (32, 64, 128, 512):
        tokens = [len(b.input_ids) for b in batches if length_class(b.max_seqlen) == name]
        assert min(tokens) <= 300
        assert max(tokens) > BUCKETS[-1].tokens
    sizes = {next_power_of_2(len(batch.input_ids)) for batch in batches}
    assert sizes >= {bucket.tokens for bucket in BUCKETS}


def test_a_model_without_token_types_gets_none():
    batch = random_batch([9], Vocabulary(50, 0, 300))
    assert not batch.token_type_ids.any()


@pytest.mark.parametrize("overflows", [False, True])
def test_a_real_model_in_float16_arithmetic(overflows, tmp_path):
    make = make_overflowing_checkpoint if overflows else make_checkpoint
    process = subprocess.run(
        [sys.executable, Path(__file__).with_name("float16_overflow.py"), make(tmp_path)],
        env={**os.environ, "BERTRON_CPU_KERNELS": "eager"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout) == {
        "overflows": overflows,
        "settled": "bfloat16" if overflows else "float16",
        # bfloat16 is of the products alone.
        "weights": ["torch.bfloat16", "torch.float32"] if overflows else ["torch.float16"],
        "finite": True,
    }
    assert ("float16 overflows" in process.stderr) == overflows
