"""Batches through the exported model: rows to their requests, errors to their own."""

import dataclasses
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import torch
from bertron_backend import encoder as encoder_module
from bertron_backend import shared_weights
from bertron_backend.encoder import WARMUP_RUNS, Encoder
from bertron_backend.errors import InferenceError, InvalidInputError
from bertron_backend.packing import TokenRequest
from bertron_backend.settings import EncoderSettings, GpuSettings
from bertron_kernels.native import INSTRUCTION_SET
from bertron_torchscript.errors import ManifestError
from bertron_torchscript.export import export
from bertron_torchscript.model_file import MODEL_FILE, load
from tiny_checkpoints import ARCHITECTURES, make_checkpoint

SHAPES = ((1, 8), (3, 500))
# One thread; two with batches cut small; two with whole ones.
SETTINGS = (
    EncoderSettings(SHAPES, max_tokens_per_forward=64, intra_op_threads=1),
    EncoderSettings(SHAPES, max_tokens_per_forward=64, intra_op_threads=2),
    EncoderSettings(SHAPES, max_tokens_per_forward=0, intra_op_threads=2),
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    source = make_checkpoint(tmp_path_factory.mktemp("source"))
    export(str(source), tmp_path_factory.mktemp("models") / "models")
    return next(tmp_path_factory.getbasetemp().glob("models*/models/bert/1"))


@pytest.fixture(scope="module", params=SETTINGS, ids=["1 thread", "2 threads cut", "2 threads"])
def encoder(directory, request):
    return Encoder(directory, "cpu", request.param)


def request_of(*lengths, seed=0):
    generator = np.random.default_rng(seed)
    ids = generator.integers(5, 300, (len(lengths), max(lengths)), dtype=np.int32)
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int32)
    return TokenRequest(ids, mask, np.zeros_like(ids))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_are_those_of_the_exported_model(architecture, tmp_path):
    """The file can number the positions too: RoBERTa's begin behind the padding's id."""
    export(str(make_checkpoint(tmp_path / "source", architecture)), tmp_path / "models")
    directory = tmp_path / "models" / "bert" / "1"
    encoder = Encoder(directory, "cpu", SETTINGS[2])
    request = request_of(9, 9)
    request.input_ids[0, :3] = 1, 2, 0  # padding's id in RoBERTa, an end, and padding's in BERT
    request.token_type_ids[:, 5:] = encoder.manifest.type_vocab_size > 1
    (rows,) = encoder.embed([request])
    ids, types = (
        torch.from_numpy(array.ravel()) for array in (request.input_ids, request.token_type_ids)
    )
    cu_seqlens = torch.tensor([0, 9, 18], dtype=torch.int32)
    expected = load(directory / MODEL_FILE).forward_packed(ids, types, cu_seqlens, 9)
    np.testing.assert_allclose(rows, expected.numpy(), atol=2e-6)
    assert types.any() == (architecture == "bert")


def test_warm_up_runs_every_shape_even_beyond_the_limit(encoder, monkeypatch):
    found = []
    forward = encoder._forward

    def spy(requests):
        found.extend(tuple(request.lengths) for request in requests)
        return forward(requests)

    monkeypatch.setattr(encoder, "_forward", spy)
    encoder.warm_up()
    shapes = [(8,), (66, 66, 66)]
    assert found == [shape for shape in shapes for _ in range(WARMUP_RUNS)]


def test_a_forward_costs_what_the_quickest_run_of_the_warm_up_took(encoder, monkeypatch):
    now, took_s = 100.0, iter([0.4, 0.05, 0.2, 0.9, 0.8, 0.3])
    forward = encoder._forward

    def timed(requests):
        nonlocal now
        now += next(took_s)
        return forward(requests)

    monkeypatch.setattr(encoder, "_forward", timed)
    monkeypatch.setattr(encoder_module.time, "perf_counter", lambda: now)
    cost = encoder.warm_up()
    assert cost.predict_ms((8,)) == pytest.approx(50)
    assert cost.predict_ms((66, 66, 66)) == pytest.approx(300)


def counted(encoder):
    return {
        counter.name: growth
        for counter, growth in encoder.counts.take().items()
        if counter.le is None
    }


def test_each_batch_is_counted_once_and_the_warm_up_is_not(encoder):
    encoder.counts.take()
    encoder.warm_up()
    assert set(counted(encoder).values()) == {0}
    bad = request_of(5, seed=5)
    bad.input_ids[0, 0] = 400
    encoder.embed([request_of(3, 60, 1, seed=1), bad, request_of(66, seed=2)])
    encoder.embed([request_of(9, seed=3)])
    encoder.embed([bad])
    assert counted(encoder) == {
        "bertron_tokens_total": 64 + 66 + 9,
        "bertron_padded_tokens_total": 4 * 66 + 9,
        "bertron_texts_total": 5,
        "bertron_batch_tokens_count": 2,
        "bertron_batch_tokens_sum": 139,
    }


def test_rows_belong_to_their_requests_across_split_batches(encoder):
    requests = [request_of(3, 60, 1, seed=1), request_of(66, seed=2), request_of(9, 9, seed=3)]
    together = encoder.embed(requests)
    for request, rows in zip(requests, together, strict=True):
        (alone,) = encoder.embed([request])
        assert rows.shape == (len(request.input_ids), 48)
        np.testing.assert_allclose(rows, alone, atol=2e-6)


@pytest.mark.parametrize(
    ("lengths", "limit", "expected"),
    [
        ((9, 9), 0, [18]),
        ((64,) * 17, 0, [576, 512]),  # more than is good for the cache
        ((10, 60), 64, [10, 60]),
        ((60, 60, 60), 32, [60, 60, 60]),  # a text is never cut
    ],
)
def test_a_large_batch_is_cut_between_texts(directory, monkeypatch, lengths, limit, expected):
    encoder = Encoder(directory, "cpu", EncoderSettings(SHAPES, limit, intra_op_threads=2))
    found = []
    forward = encoder._forward_batch

    def spy(batch):
        found.append(len(batch.input_ids))
        return forward(batch)

    monkeypatch.setattr(encoder, "_forward_batch", spy)
    encoder.embed([request_of(*lengths)])
    assert found == expected


@pytest.mark.skipif(INSTRUCTION_SET is None, reason="the CPU library is not built")
@pytest.mark.parametrize(
    ("architecture", "pooling"), [("bert", "mean"), ("bert", "cls"), ("roberta", "last")]
)
def test_no_threads_but_the_librarys_take_the_cores(tmp_path, architecture, pooling):
    """OpenMP's, once woken by one of PyTorch's operators, look for work where the team computes."""
    (tmp_path / "source").mkdir()
    source = make_checkpoint(tmp_path / "source", architecture, pooling=pooling)
    export(str(source), tmp_path / "models")
    directory = tmp_path / "models" / "bert" / "1"
    program = f"""
import os, pathlib
import numpy as np
from bertron_backend.encoder import Encoder
from bertron_backend.packing import TokenRequest
from bertron_backend.settings import EncoderSettings
settings = EncoderSettings(((1, 8),), max_tokens_per_forward=0, intra_op_threads=3)
encoder = Encoder(pathlib.Path({str(directory)!r}), "cpu", settings)
before = set(os.listdir("/proc/self/task"))
ones = np.ones((40, 20), dtype=np.int32)
for _ in range(3):
    encoder.embed([TokenRequest(ones, ones, ones * 0)])
print(len(set(os.listdir("/proc/self/task")) - before))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == ["2"]  # with the caller three


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_instances_on_cpus_share_their_weights_and_give_the_same_rows(directory, temporary):
    alone = Encoder(directory, "cpu", SETTINGS[0])
    assert "shared" not in alone.describe()
    assert list(temporary.iterdir()) == []
    requests = [request_of(3, 60, 1, seed=1), request_of(66, seed=2)]
    expected = alone.embed(requests)
    settings = dataclasses.replace(SETTINGS[0], cpu_instances=2)
    both = [Encoder(directory, "cpu", settings) for _ in range(2)]
    (place,) = temporary.iterdir()
    (file,) = place.iterdir()
    for encoder in both:
        assert f"{file.stat().st_size / 2**20:.0f} MB of weights shared" in encoder.describe()
        for found, rows in zip(encoder.embed(requests), expected, strict=True):
            np.testing.assert_array_equal(found, rows)
    both[0].close()
    assert list(place.iterdir()) == [file]
    both[1].close()
    assert list(place.iterdir()) == []


def test_where_weights_cannot_be_shared_each_instance_has_its_own(directory, temporary, caplog):
    shared_weights.default_directory().write_text("in the way")
    encoder = Encoder(directory, "cpu", dataclasses.replace(SETTINGS[0], cpu_instances=2))
    assert "weights are not shared in" in caplog.text
    assert "shared" not in encoder.describe()
    encoder.warm_up()
    encoder.close()


def test_a_bad_request_is_answered_for_itself_alone(encoder):
    good, bad = request_of(5, seed=4), request_of(5, seed=5)
    bad.input_ids[0, 0] = 400
    first, refused, last = encoder.embed([good, bad, good])
    assert isinstance(refused, InvalidInputError)
    (alone,) = encoder.embed([good])
    np.testing.assert_allclose(first, alone, atol=2e-6)
    np.testing.assert_allclose(last, alone, atol=2e-6)


def test_when_a_joined_batch_fails_each_request_is_tried_alone(encoder, monkeypatch, caplog):
    forward = Encoder._forward_batch

    def fails_on_token_7(self, batch):
        if (batch.input_ids == 7).any():
            raise RuntimeError("device trouble")
        return forward(self, batch)

    monkeypatch.setattr(Encoder, "_forward_batch", fails_on_token_7)
    good, bad = request_of(5, seed=4), request_of(5, seed=5)
    good.input_ids[good.input_ids == 7] = 8
    bad.input_ids[0, 2] = 7
    first, failed, last = encoder.embed([good, bad, good])
    assert isinstance(failed, InferenceError)
    assert str(failed) == "the model failed on this request: RuntimeError"
    assert first.shape == last.shape == (1, 48)
    assert "a batch of 3 requests failed" in caplog.text


def test_a_value_that_is_not_finite_is_never_sent(encoder, monkeypatch):
    forward = Encoder._forward_batch

    def poisoned(self, batch):
        rows = forward(self, batch)
        rows[1, 3] = np.nan
        return rows

    monkeypatch.setattr(Encoder, "_forward_batch", poisoned)
    answers = encoder.embed([request_of(5, seed=seed) for seed in (1, 2, 3)])
    assert [isinstance(answer, InferenceError) for answer in answers] == [False, True, False]
    assert "text 0 is not finite" in str(answers[1])


def test_the_cpu_has_no_graphs_and_says_what_runs(encoder):
    encoder.warm_up()
    assert encoder.graphs is None
    assert encoder.describe().startswith("float32 on cpu by ")
    assert "graphs" not in encoder.describe()


def test_what_a_graph_holds_it_answers_and_the_rest_runs_eagerly(encoder, monkeypatch):
    class Graphs:
        seen = ()

        def run(self, batch):
            self.seen = (*self.seen, batch.max_seqlen)
            return np.full((len(batch.cu_seqlens) - 1, 48), 5.0) if batch.max_seqlen < 9 else None

    expected = encoder.embed([request_of(9, seed=2)])[0]
    monkeypatch.setattr(encoder, "graphs", Graphs())
    (small,) = encoder.embed([request_of(8, seed=1)])
    (large,) = encoder.embed([request_of(9, seed=2)])
    assert (small == 5).all()
    np.testing.assert_array_equal(large, expected)
    assert encoder.graphs.seen == (8, 9)


@pytest.fixture
def on_gpu(directory, monkeypatch):
    """An encoder's GPU warm-up run on the CPU, over graphs that are none; gives it and its log."""

    def warmed_up(settings=GpuSettings(), shapes=((16, 32),), obstacle=None):  # noqa: B008
        made = []

        class Graphs:
            memory_bytes = 5 * 2**20

            def __init__(self, *arguments):
                made.append(arguments[-2:])
                self.shapes = ()

            def capture(self):
                self.shapes = shapes

        monkeypatch.setattr(encoder_module, "CudaGraphs", Graphs)
        monkeypatch.setattr(encoder_module, "obstacle", lambda _model, _device: obstacle)
        encoder = Encoder(directory, "cpu", SETTINGS[0], settings)
        encoder._warm_up_gpu()
        encoder.device = torch.device("cuda:0")
        return encoder, made

    return warmed_up


def test_graphs_are_made_at_the_warm_up_of_a_gpu(on_gpu):
    encoder, made = on_gpu(GpuSettings(cuda_graph_megabytes=77))
    assert made == [(48, 77)]
    assert encoder.graphs is not None
    assert encoder.describe().startswith("float32 on cuda:0 by ")
    assert encoder.describe().endswith(", 1 CUDA graphs holding 5 MB")


@pytest.mark.parametrize(
    ("options", "words", "tried"),
    [
        ({"settings": GpuSettings(cuda_graphs=False)}, "off", 0),
        ({"obstacle": "they are not tried on ROCm"}, "they are not tried on ROCm", 0),
        ({"shapes": ()}, "none could be made", 1),
    ],
)
def test_without_graphs_the_log_says_why(on_gpu, options, words, tried):
    encoder, made = on_gpu(**options)
    assert encoder.graphs is None
    assert len(made) == tried
    assert encoder.describe().endswith(f", without CUDA graphs: {words}")


def test_the_log_names_the_dtype_that_replaced_another(on_gpu, monkeypatch):
    monkeypatch.setattr(
        encoder_module, "settle_dtype", lambda _dtype, load, *_others: load("bfloat16")
    )
    encoder, _ = on_gpu()
    assert encoder.describe().startswith("bfloat16 (exported in float32) on cuda:0 by ")


def test_a_file_of_another_export_is_not_loaded(directory, tmp_path):
    for path in directory.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.pt").write_bytes(b"something else")
    with pytest.raises(ManifestError, match="from another export"):
        Encoder(tmp_path, "cpu", SETTINGS[0])
