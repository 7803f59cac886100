"""Whole encoders with random weights, held to transformers in float64 and timed beside it.

All get the same random tokens, on the device before the clock starts; their lengths are uniform, or
those of real texts. Peers pad to the batch's longest; ours packs.
"""

import copy
import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import gpu_lengths
import gpu_work
import measuring
import numpy as np
import torch
import torch.nn.functional as F
from bertron_backend.buckets import BUCKETS
from bertron_backend.cores import usable_cores
from bertron_backend.encoder import Encoder
from bertron_backend.packing import TokenRequest
from bertron_backend.settings import EncoderSettings
from bertron_torchscript.bert import Bert
from bertron_torchscript.checkpoint import EncoderConfig, Pooling, encoder_config
from bertron_torchscript.export import narrow
from bertron_torchscript.manifest import Limits, Manifest, Verification, sha256_of
from bertron_torchscript.model_file import MODEL_FILE, load, no_profiling, save
from bertron_torchscript.weights import map_weights
from gpu_report import COMPILED, GRAPH, Row
from gpu_timing import Budget, OutOfTimeError, latencies_ms, rounds_ms
from torch import Tensor, nn
from transformers import BertConfig, BertModel

PART = "models"
EAGER, SERVED = "Bertron, eager", "Bertron encoder, arrays to arrays"
TRANSFORMERS = "transformers, SDPA"
SIZES = {
    "BERT-base": (12, 768, 12, 3072),  # layers, hidden size, heads, intermediate size
    "MiniLM-L6": (6, 384, 12, 1536),
    "BERT-large": (24, 1024, 16, 4096),
}
POOLING = Pooling("mean", normalize=True)
FIRST_ID = 1000  # below are the special and unused ones
MAX_TOKENS = 512
# Fresh models have zero biases and unit norms, which would hide a bias that is lost, and attend to
# all tokens nearly alike, which would hide a wrong scale: at half the scale and the usual 0.02,
# MiniLM's vectors move by 0.004 of their length; at 0.04 by 0.037, and BERT-base's by 0.12.
SPREAD, INITIALIZER_RANGE = 0.02, 0.04
# Random weights magnify bfloat16's rounding: transformers itself reaches 0.9998 with BERT-base.
REQUIRED_COSINE = measuring.REQUIRED_COSINE | {"bfloat16": 0.999}
# An engine may be so many times as far from float64 as transformers in the same dtype, or this far.
PEER_ERRORS, LEAST_GATE = 2, 1e-5
UNIFORM = ((1, 128), (32, 128))
REAL = (32, 1, 8, 128)
ACCURACY_DTYPES = ("bfloat16", "float32")
ROUNDS, ROUND_S, LATENCIES = 7, 0.05, 50
WARM_CALLS = 3
ALIGNMENT = 16  # elements: kernels are compiled anew for addresses that no 16 bytes divide
# One compilation's limits, guesses until compiling has been timed: with less it is not begun, after
# more it is interrupted. The rest is left to the models that follow.
LEAST_COMPILE_S, MOST_COMPILE_S = 40, 110
REST_S = 60


@dataclass(frozen=True)
class Batch:
    """The same texts, packed and padded, on the device and, for the server's encoder, off it.

    Attributes:
        shape: For a table.
        lengths: Tokens of each text.
        packed: input_ids, token_type_ids, position_ids [T], cu_seqlens [B + 1], all int32 in one
            buffer, in this order, each begun at a multiple of ALIGNMENT.
        input_ids: [B, S] int64, padded with 0.
        attention_mask: [B, S] int64, or None where nothing is padded.
        request: The padded form as the server's tokenizer sends it.
    """

    shape: str
    lengths: tuple[int, ...]
    packed: Tensor
    input_ids: Tensor
    attention_mask: Tensor | None
    request: TokenRequest

    @property
    def max_seqlen(self) -> int:
        """Tokens of the longest text."""
        return max(self.lengths)

    def sections(self, buffer: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Views of ``buffer``, in the order of ``Bert.forward_positions``."""
        tokens = sum(self.lengths)
        step = _aligned(tokens)
        ids, types, positions = (buffer[first : first + tokens] for first in (0, step, 2 * step))
        return ids, types, positions, buffer[3 * step : 3 * step + len(self.lengths) + 1]


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def make_batch(shape: str, lengths: Sequence[int], vocabulary: int, device: torch.device) -> Batch:
    """Fresh random tokens in texts of these lengths."""
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]  # [B, S]
    ids = torch.randint(min(FIRST_ID, vocabulary // 2), vocabulary, mask.shape).numpy() * mask
    positions = np.broadcast_to(np.arange(max(lengths)), mask.shape)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    parts = [ids[mask], np.zeros(sum(lengths)), positions[mask], starts]
    aligned = [np.pad(part, (0, _aligned(len(part)) - len(part))) for part in parts]
    zeros = np.zeros(mask.shape, dtype=np.int32)
    return Batch(
        shape,
        tuple(lengths),
        torch.from_numpy(np.concatenate(aligned).astype(np.int32)).to(device),
        torch.from_numpy(ids.astype(np.int64)).to(device),
        None if mask.all() else torch.from_numpy(mask.astype(np.int64)).to(device),
        TokenRequest(ids.astype(np.int32), mask.astype(np.int32), zeros),
    )


def random_model(
    layers: int, hidden: int, heads: int, intermediate: int, **config: int
) -> BertModel:
    """BERT of transformers in float32 with random weights, on the CPU."""
    sizes = {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
        "initializer_range": INITIALIZER_RANGE,
    }
    model = BertModel(BertConfig(**sizes, **config), add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += SPREAD * torch.randn_like(parameter)
    return model


def peer_of(model: BertModel, dtype: str, device: torch.device, attention: str) -> nn.Module:
    """A copy of ``model`` with ``attention``, one of transformers' implementations."""
    peer = copy.deepcopy(model).to(device, getattr(torch, dtype)).requires_grad_(False)
    peer.set_attn_implementation(attention)
    return peer


def embed_padded(model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """[B, E], the normalised mean of each text's tokens; float32, or float64 in float64."""
    hidden = model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    if attention_mask is None:
        return F.normalize(hidden.mean(1), dim=1)
    kept = attention_mask[:, :, None]
    return F.normalize((hidden * kept).sum(1) / kept.sum(1), dim=1)


def write_ours(model: BertModel, dtype: str, directory: Path) -> EncoderConfig:
    """``model.pt`` and its manifest, as an export writes them, of weights that are in memory."""
    path = directory / MODEL_FILE
    config = encoder_config(model.config.to_dict(), path)
    state, _ = map_weights(model.state_dict(), config, path)
    ours = Bert(config, POOLING, config.num_layers).eval()
    ours.load_state_dict(state, strict=True)
    narrow(ours, getattr(torch, dtype))
    save(ours, path)
    Manifest(
        name="random weights",
        architecture=config.architecture,
        dtype=dtype,
        pooling=POOLING.mode,
        normalize=POOLING.normalize,
        num_layers=config.num_layers,
        pruned_layers=0,
        hidden_size=config.hidden_size,
        embedding_size=config.hidden_size,
        vocab_size=config.vocab_size,
        type_vocab_size=config.type_vocab_size,
        limits=Limits(max_tokens_per_text=config.max_positions),
        verification=Verification(texts=0, min_cosine=0.0, required_cosine=0.0),  # it is done here
        source_sha256={},
        files_sha256={MODEL_FILE: sha256_of(path)},
        versions={"torch": torch.__version__},
    ).write(directory)
    return config


def server_encoder(directory: Path, device: torch.device) -> Encoder:
    """What the server runs, warmed up: on a GPU its CUDA graphs are captured."""
    settings = EncoderSettings(
        warmup_shapes=((1, 8), (1, 128)),
        max_tokens_per_forward=0,
        intra_op_threads=usable_cores(),
    )
    encoder = Encoder(directory, str(device), settings)
    encoder.warm_up()
    return encoder


Engine = Callable[[Batch], Callable[[], object]]


def packed_engine(model: torch.jit.ScriptModule) -> Engine:
    """Ours, launched op by op."""

    def prepared(batch: Batch) -> Callable[[], Tensor]:
        ids, types, _positions, starts = batch.sections(batch.packed)

        def run() -> Tensor:
            with torch.inference_mode(), no_profiling():
                out: Tensor = model.forward_packed(ids, types, starts, batch.max_seqlen)
                return out

        return run

    return prepared


def graph_engine(model: torch.jit.ScriptModule) -> Engine:
    """Ours, captured at the batch's own shape; a call copies the tokens in and replays."""

    def prepared(batch: Batch) -> Callable[[], Tensor]:
        static = batch.packed.clone()
        forward = functools.partial(
            model.forward_positions, *batch.sections(static), batch.max_seqlen
        )
        side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        side.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode(), no_profiling():
            with torch.cuda.stream(side):
                for _ in range(WARM_CALLS):
                    forward()
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(graph):
                out: Tensor = forward()
            static.zero_()

        def run() -> Tensor:
            static.copy_(batch.packed)
            graph.replay()
            return out

        return run

    return prepared


def served_engine(encoder: Encoder) -> Engine:
    """The server's own: checks, packing, copies to the device and back."""

    def prepared(batch: Batch) -> Callable[[], np.ndarray]:
        def run() -> np.ndarray:
            (rows,) = encoder.embed([batch.request])
            if isinstance(rows, Exception):
                raise rows
            return rows

        return run

    return prepared


def padded_engine(peer: nn.Module) -> Engine:
    """The peer as it is, launched op by op."""

    def prepared(batch: Batch) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.no_grad():
                return embed_padded(peer, batch.input_ids, batch.attention_mask)

        return run

    return prepared


class _Embedder(nn.Module):
    """``embed_padded`` as a module, whose weights torch.compile leaves where they are."""

    def __init__(self, peer: nn.Module) -> None:
        super().__init__()
        self._peer = peer

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        return embed_padded(self._peer, input_ids, attention_mask)


def compiled_engine(peer: nn.Module) -> Engine:
    """The peer compiled for the batch's shape, with CUDA graphs."""

    def prepared(batch: Batch) -> Callable[[], Tensor]:
        torch._dynamo.reset()  # one shape at a time: no compilation is dropped for too many
        embed = torch.compile(_Embedder(peer), mode="max-autotune", dynamic=False)

        def run() -> Tensor:
            torch.compiler.cudagraph_mark_step_begin()
            with torch.no_grad():
                out: Tensor = embed(batch.input_ids, batch.attention_mask)
                return out

        return run

    return prepared


def shapes(lengths: list[int], *, quick: bool) -> Iterator[tuple[str, list[int]]]:
    """(name, lengths) of every batch: uniform ones, then typical ones of real texts."""
    for texts, tokens in UNIFORM:
        yield f"{texts} x {tokens}", [tokens] * texts
    for count in REAL[:1] if quick else REAL:
        chosen = gpu_lengths.typical_batch(lengths, count)
        name = f"{count} real text{'s' * (count > 1)}"
        yield f"{name}, {sum(chosen)} tokens, fill {gpu_lengths.fill(chosen):.2f}", chosen


def problem_of(
    found: np.ndarray, expected: np.ndarray, dtype: str, row: Row, peer_error: float | None
) -> str:
    """Fill in the row's error and cosine; what is wrong, or nothing.

    Args:
        found: [B, E].
        expected: In float64.
        dtype: Of the engine.
        row: The engine's.
        peer_error: What transformers' own is in that dtype, where it is known.
    """
    if found.shape != expected.shape:
        return f"shape {list(found.shape)}, expected {list(expected.shape)}"
    row.error = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    row.cosine = measuring.smallest_cosine(found, expected)
    required = REQUIRED_COSINE[dtype]
    # Cosine is blind to length; for vectors of length 1 the same bound, as a distance.
    largest = (2 * (1 - required)) ** 0.5
    if peer_error is not None:
        largest = max(LEAST_GATE, PEER_ERRORS * peer_error)
    if not (row.cosine >= required and row.error <= largest):
        return f"cosine {row.cosine:.6f}, error {row.error:.1e}; gates {required}, {largest:.1e}"
    return ""


def measure(
    model_name: str,
    dtype: str,
    batch: Batch,
    engines: dict[str, Engine],
    expected: np.ndarray,
    size: tuple[int, int, int],
    device: torch.device,
    compile_s: float = MOST_COMPILE_S,
) -> list[Row]:
    """Check every engine on a batch, then time in turns those that are right.

    Args:
        model_name: For the rows.
        dtype: Of all engines.
        batch: What they embed.
        engines: By name.
        expected: [B, E] float64.
        size: Layers, hidden size, intermediate size.
        device: Where they run.
        compile_s: For all that an engine does at its first calls.
    """
    rows, calls, peer_error = {}, {}, None
    for name in sorted(engines, key=lambda name: name != TRANSFORMERS):  # the others' measure
        row = Row(PART, model_name, batch.shape, dtype, name)
        row.work = gpu_work.encoder(batch.lengths, *size)
        row.is_ours = name in (EAGER, GRAPH, SERVED)
        rows[name] = row
        try:
            with Budget(compile_s).enforced():
                call = engines[name](batch)
                for _ in range(WARM_CALLS):
                    found = call()
            array = found.float().cpu().numpy() if isinstance(found, Tensor) else found
            row.problem = problem_of(array, expected, dtype, row, peer_error)
            if not row.problem:
                calls[name] = call
                peer_error = row.error if name == TRANSFORMERS else peer_error
        except OutOfTimeError:
            row.problem = f"not ready after {compile_s:.0f} s"
        except Exception as error:  # what cannot run is a row that says so
            row.problem = f"{type(error).__name__}: {error}".splitlines()[0]
    times = rounds_ms(calls, device, rounds=ROUNDS, round_s=ROUND_S)
    for name, call in calls.items():
        rows[name].times_ms = times[name]
        rows[name].latencies_ms = latencies_ms(call, device, LATENCIES)
    return [rows[name] for name in engines]


class Subject:
    """One model with its reference, from which engines are made.

    Args:
        name: One of SIZES.
        device: Where everything runs.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        self.device = device
        layers, hidden, _heads, intermediate = SIZES[name]
        self.size = (layers, hidden, intermediate)
        self.model = random_model(*SIZES[name])
        self._reference = peer_of(self.model, "float64", device, "eager")
        self._folder = tempfile.TemporaryDirectory(prefix="bertron-bench-")

    def batch(self, shape: str, lengths: Sequence[int]) -> Batch:
        """Fresh tokens."""
        return make_batch(shape, lengths, self.model.config.vocab_size, self.device)

    def expected(self, batch: Batch) -> np.ndarray:
        """[B, E] in float64."""
        with torch.no_grad():
            rows = embed_padded(self._reference, batch.input_ids, batch.attention_mask)
        return rows.cpu().numpy()

    def directory(self, dtype: str) -> Path:
        """Ours in ``dtype``, written once."""
        directory = Path(self._folder.name) / dtype
        if not directory.exists():
            directory.mkdir()
            write_ours(self.model, dtype, directory)
        return directory

    def ours(self, dtype: str) -> torch.jit.ScriptModule:
        """Loaded as the server loads it."""
        return load(self.directory(dtype) / MODEL_FILE, self.device)

    def measure(
        self, dtype: str, batch: Batch, engines: dict[str, Engine], compile_s: float
    ) -> list[Row]:
        """Rows of ``engines`` on ``batch``."""
        expected = self.expected(batch)
        return measure(
            self.name, dtype, batch, engines, expected, self.size, self.device, compile_s
        )

    def close(self) -> None:
        """Remove the files."""
        self._folder.cleanup()


def measure_all(
    budget: Budget, add: Callable[[Row], None], note: Callable[[str], None], *, quick: bool
) -> None:
    """Every model at every shape, then the dtypes that only accuracy is asked of.

    Compiling takes what is left, in the targets' order.

    Raises:
        OutOfTimeError: The time did not suffice.
    """
    device, lengths = torch.device("cuda:0"), gpu_lengths.read()
    with budget.enforced():
        for name in list(SIZES)[:1] if quick else SIZES:
            subject = Subject(name, device)
            try:
                _measure_model(subject, lengths, budget, add, note, quick=quick)
            finally:
                subject.close()
            del subject
            torch.cuda.empty_cache()


def _measure_model(
    subject: Subject,
    lengths: list[int],
    budget: Budget,
    add: Callable[[Row], None],
    note: Callable[[str], None],
    *,
    quick: bool,
) -> None:
    module = subject.ours("float16")
    peer = peer_of(subject.model, "float16", subject.device, "sdpa")
    engines = {
        GRAPH: graph_engine(module),
        EAGER: packed_engine(module),
        TRANSFORMERS: padded_engine(peer),
    }
    if not quick:
        encoder = server_encoder(subject.directory("float16"), subject.device)
        note(f"{subject.name}: the server's encoder ran in {encoder.describe()}.")
        engines[SERVED] = served_engine(encoder)
    for number, (shape, chosen) in enumerate(shapes(lengths, quick=quick)):
        own = dict(engines)
        if sum(chosen) > BUCKETS[-1].tokens:
            own.pop(SERVED, None)  # no graph of the server's is so large: it would be EAGER again
        compile_s = min(MOST_COMPILE_S, budget.left_s - REST_S)
        # The uniform ones and the real 32: what the targets speak of.
        if number <= len(UNIFORM) and subject.name != "BERT-large" and not quick:
            if compile_s >= LEAST_COMPILE_S:
                own[COMPILED] = compiled_engine(peer)
            else:
                note(f"{subject.name}, {shape}: not compiled, {budget.left_s:.0f} s were left.")
        batch = subject.batch(shape, chosen)
        for row in subject.measure("float16", batch, own, max(compile_s, REST_S)):
            add(row)
    for dtype in () if quick else ACCURACY_DTYPES:
        peer = peer_of(subject.model, dtype, subject.device, "sdpa")
        own = {GRAPH: graph_engine(subject.ours(dtype)), TRANSFORMERS: padded_engine(peer)}
        batch = subject.batch(*list(shapes(lengths, quick=True))[-1])
        for row in subject.measure(dtype, batch, own, REST_S):
            add(row)
