"""The CPU library under AddressSanitizer and UndefinedBehaviorSanitizer, over awkward shapes.

A sanitizer that finds anything ends the worker and says what on its stderr, which pytest shows.
"""

import shutil
import subprocess

import pytest
import torch
from bertron_kernels.arguments import POOLING_MODES
from bertron_kernels.build import build
from bertron_kernels.native import CHOICES, INSTRUCTION_SET
from emulated_cpu import EMULATED, build_emulated

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed"),
    pytest.mark.skipif(INSTRUCTION_SET is None, reason="the CPU library is not built"),
]

DTYPES = (torch.float32, torch.bfloat16)
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
FLAGS = (*SANITIZERS, "-fno-omit-frame-pointer", "-g1", "-O1", "-Werror")


def runtime(name):
    found = subprocess.run(
        ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    )
    return found.stdout.strip()


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory, start_worker):
    """A worker on the sanitized library, by instruction set."""
    path = tmp_path_factory.mktemp("sanitized") / "libbertron_cpu.so"
    build(path, extra_flags=FLAGS, tried=False)
    emulated = build_emulated(tmp_path_factory.mktemp("emulated"), FLAGS) if EMULATED else None
    environment = {
        # libstdc++ too: the sanitizer looks for what throws before PyTorch has loaded it.
        "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libstdc++.so')}",
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    workers = []

    def start(choice):
        # One thread, and a new one for each call: its scratch memory is exactly what it asked for.
        library = emulated if choice in EMULATED else path
        chosen = environment | {"BERTRON_CPU_LIBRARY": str(library)}
        workers.append(start_worker(choice, chosen, num_threads=1))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


@pytest.mark.parametrize("choice", CHOICES[1:])
def test_nothing_is_read_or_written_out_of_bounds(sanitized, randn, packed, choice):
    worker = sanitized(choice)
    for dtype in DTYPES:
        products(worker, randn, dtype)
        attention(worker, randn, packed, dtype)
        rows(worker, randn, packed, dtype)


def products(worker, randn, dtype):
    """By rows and by columns, at sizes that no tile, panel, chunk or word divides."""
    for tokens, inputs, outputs in (
        (1, 26, 17),
        (5, 33, 80),
        (7, 1, 1),
        (103, 330, 65),
        (13, 48, 64),
        (16, 64, 16),  # whole tiles of AMX
        (37, 128, 85),
        (0, 8, 8),
        (6, 0, 5),
    ):
        x, residual, row = (
            randn(*shape, dtype=dtype)
            for shape in ((tokens, inputs), (tokens, outputs), (outputs,))
        )
        scale, input_scale = randn(outputs), randn(inputs)
        weight = randn(outputs, inputs)
        stored = (
            (weight, None, None),
            (weight.bfloat16(), None, None),
            ((weight * 30).to(torch.int8), scale, None),
            ((weight * 30).to(torch.int8), scale, input_scale),
        )
        for values, scale_or_none, input_scale_or_none in stored:
            scales = (scale_or_none, input_scale_or_none)
            packed = worker.run("pack_weight", values, *scales, callers=1)[0]
            for value in (1.0, 1e30, torch.nan):
                arguments = (x * value, packed, *scales, row)
                worker.run("linear", *arguments, callers=1)
            worker.run("linear_gelu", *arguments, callers=1)
            norm = (residual, row, row, 1e-12)
            worker.run("linear_add_layer_norm", *arguments, *norm, callers=1)
    # bf16 words across 32-bit boundaries.
    x = randn(1 + 3 * 64, dtype=dtype)[1:].view(3, 64)
    packed = worker.run("pack_weight", randn(20, 64, dtype=dtype), None, None, callers=1)[0]
    worker.run("linear", x, packed, None, None, randn(20), callers=1)


def attention(worker, randn, packed, dtype):
    # 33: heads of whole vectors of bf16 words, every second one between two words.
    for head_dim in (13, 26, 32, 33, 80):
        for lengths in ([1], [2], [15, 16, 17], [63, 0, 65], [130], [0]):
            qkv = randn(sum(lengths), 3, 3, head_dim, dtype=dtype)
            for value in (1.0, torch.inf, torch.nan):
                arguments = (qkv * value, packed(lengths), max(lengths), 0.2)
                worker.run("varlen_attention", *arguments, callers=1)


def rows(worker, randn, packed, dtype):
    for hidden in (1, 15, 26, 48, 331):
        x, row = randn(9, hidden, dtype=dtype), randn(hidden, dtype=dtype)
        worker.run("bias_gelu", x, row, callers=1)
        worker.run("add_layer_norm", x, x, row, row, row, 1e-12, callers=1)
        ids = torch.arange(9, dtype=torch.int32)
        tables = (x, x, x, row, row, 1e-12)
        worker.run("embedding_layer_norm", ids, ids, ids * 0, *tables, callers=1)
        for mode in POOLING_MODES:
            worker.run("pool", x, packed([0, 1, 8]), mode, True, callers=1)
