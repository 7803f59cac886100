"""The real server on a GPU, where there is one: texts in, embeddings out, over gRPC.

Tokenizers and encoders side by side are tried too: a GPU embeds more texts than one tokenizer makes
of them, and waits while one encoder's Python reads a batch and answers it.

MiniLM-L6's sizes with random weights, since a GPU machine may have no network; its vocabulary is
made up, and so are the texts, whose lengths are those of real ones. The callers are processes of
their own: one alone would be busier than the server.
"""

import dataclasses
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import gpu_lengths
import gpu_models
import measuring
import numpy as np
import torch
from bertron_loadtest.knobs import CORES, ENCODERS, TOKENIZERS, with_value
from gpu_report import Row
from gpu_timing import Budget

PART = "served"
DEVICE = "cuda"  # of the vectors that ours are held to
DTYPE = "float16"  # what a GPU gets by default
MODEL = "MiniLM-L6"
VOCABULARY = 30522
SPECIAL = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
TEXTS = 1024
LOADS = ((1, 1), (32, 1), (128, 1), (4, 32), (32, 32))  # callers, texts a call
SATURATING = ((128, 1), (32, 32))
PROCESSES = 8
BEGIN_S, MEASURED_S = 4.0, 3.0  # a process imports and connects, and warms the server's batching
READY_TIMEOUT_S = 120
STAGES = ("tokenizer", "bert")


@dataclasses.dataclass(frozen=True)
class Setting:
    """Processes side by side.

    Attributes:
        tokenizers: On the CPU.
        encoders: On the GPU.
        loads: Of LOADS, those that are measured with it.
    """

    tokenizers: int
    encoders: int
    loads: Sequence[tuple[int, int]]

    def __str__(self) -> str:
        """In words."""
        return f"tokenizer x {self.tokenizers}, bert x {self.encoders}"

    def write(self, repository: Path) -> None:
        """Write it into the configurations of an export."""
        for knob, value in ((TOKENIZERS, self.tokenizers), (ENCODERS, self.encoders)):
            path = repository / knob.step / "config.pbtxt"
            config = path.read_text(encoding="utf-8")
            path.write_text(with_value(config, knob, value), encoding="utf-8")


MANY = max(2, min(8, CORES // 2))  # the callers want cores too
SETTINGS = (  # the export's own first
    Setting(1, 1, LOADS),
    Setting(MANY, 1, SATURATING),
    Setting(MANY, 2, SATURATING),
)


def obstacle() -> str:
    """Why nothing can be served here, in a few words; empty where it can."""
    try:
        import tritonclient.grpc  # noqa: F401
        from bertron_server.errors import InstallationError
        from bertron_server.installation import find_installation
    except (ImportError, RuntimeError) as error:  # tritonclient raises the latter
        return str(error)
    try:
        find_installation()
    except InstallationError as error:
        return str(error)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    stub = [sys.executable, "-c", "import bertron_backend, bertron_kernels"]
    if subprocess.run(stub, env=environment, capture_output=True, timeout=120).returncode:
        return "this Python has no bertron installed, and the server's stub ignores PYTHONPATH"
    return ""


def write_checkpoint(directory: Path) -> None:
    """A Hugging Face directory: random weights, and a tokenizer of words like ``w1000``."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    gpu_models.random_model(*gpu_models.SIZES[MODEL]).save_pretrained(directory)
    words = {SPECIAL.get(number, f"w{number}"): number for number in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))  # noqa: S106
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", 101), ("[SEP]", 102)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    tokenizer.save(str(directory / "tokenizer.json"))


def made_up_texts(lengths: Sequence[int], seed: int = 0) -> list[str]:
    """Texts of so many tokens, the two special ones included."""
    generator = np.random.default_rng(seed)
    numbers = [generator.integers(gpu_models.FIRST_ID, VOCABULARY, n - 2) for n in lengths]
    return [" ".join(f"w{number}" for number in own) for own in numbers]


def expected_vectors(checkpoint: Path, texts: Sequence[str], device: torch.device) -> np.ndarray:
    """[B, E] of transformers in float64."""
    from tokenizers import Tokenizer
    from transformers import BertModel

    model = BertModel.from_pretrained(checkpoint, add_pooling_layer=False).eval()
    peer = gpu_models.peer_of(model, "float64", device, "eager")
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.enable_padding()
    parts = []
    for first in range(0, len(texts), 64):
        encodings = tokenizer.encode_batch(list(texts[first : first + 64]))
        ids, mask = (
            torch.tensor([getattr(one, name) for one in encodings], device=device)
            for name in ("ids", "attention_mask")
        )
        with torch.no_grad():
            parts.append(gpu_models.embed_padded(peer, ids, mask).cpu().numpy())
    return np.concatenate(parts)


def stage_us(url: str) -> dict[str, tuple[int, float, float]]:
    """By stage: requests so far, microseconds in the queue and in the model, of all together."""
    from tritonclient.grpc import InferenceServerClient

    with InferenceServerClient(url.removeprefix("grpc://")) as client:
        found = {}
        for stage in STAGES:
            (model,) = client.get_inference_statistics(stage, client_timeout=20).model_stats
            own = model.inference_stats
            found[stage] = (own.success.count, own.queue.ns / 1e3, own.compute_infer.ns / 1e3)
        return found


def stages_between(
    before: dict[str, tuple[int, float, float]], after: dict[str, tuple[int, float, float]]
) -> str:
    """Mean time of a request per stage, in words."""
    parts = []
    for stage in STAGES:
        count, queued, computed = (
            late - early for late, early in zip(after[stage], before[stage], strict=True)
        )
        if count:
            parts.append(
                f"{stage} {queued / count:.0f} us in the queue, {computed / count:.0f} us in it"
            )
    return "; ".join(parts)


def measure_load(url: str, callers: int, texts_a_call: int, texts: list[str], engine: str) -> Row:
    """One row: milliseconds a text at this load, and the calls' median."""
    from gpu_callers import Load, call_until

    processes = min(PROCESSES, callers)
    begins = time.time() + BEGIN_S
    ends = begins + MEASURED_S
    loads = [
        Load(url, callers // processes, texts_a_call, texts[number::processes], begins, ends)
        for number in range(processes)
    ]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        waiting = pool.map_async(call_until, loads, chunksize=1)
        time.sleep(max(0.0, begins - time.time()))
        before = stage_us(url)
        time.sleep(max(0.0, ends - time.time()))
        after = stage_us(url)
        found = waiting.get(timeout=60)
    answered = sum(count for count, _ in found)
    seconds = [second for _, took in found for second in took]
    shape = f"{callers} x {texts_a_call} text{'s' * (texts_a_call > 1)}"
    row = Row(PART, MODEL, shape, DTYPE, engine, is_ours=True)
    row.times_ms = [1e3 * MEASURED_S / answered] if answered else []
    row.latencies_ms = [1e3 * second for second in seconds]
    row.note = stages_between(before, after)
    return row


@dataclasses.dataclass(frozen=True)
class Trial:
    """What is the same in every setting.

    Attributes:
        repository: Where the export lies; its configurations are changed.
        texts: Those that are asked for.
        expected: [texts, E], their vectors.
        add: Takes a row.
        note: Takes a line for the report.
    """

    repository: Path
    texts: list[str]
    expected: np.ndarray
    add: Callable[[Row], None]
    note: Callable[[str], None]

    def measure(self, setting: Setting, loads: Sequence[tuple[int, int]]) -> None:
        """Serve with a setting, check the vectors, then each load."""
        from bertron_client import Client
        from bertron_server.server import TritonServer

        setting.write(self.repository)
        log = self.repository.parent / "server.log"
        log.unlink(missing_ok=True)
        server = TritonServer(self.repository, log_path=log, ready_timeout_s=READY_TIMEOUT_S)
        started = time.monotonic()
        try:
            with server:
                ready_s = time.monotonic() - started
                self.note(f"Served with {setting}: ready {ready_s:.1f} s after the start.")
                with Client(server.grpc_url) as client:
                    found = np.asarray(client.embed(self.texts))
                cosine = measuring.smallest_cosine(found, self.expected)
                for callers, texts_a_call in loads:
                    row = measure_load(
                        server.grpc_url, callers, texts_a_call, self.texts, str(setting)
                    )
                    row.cosine = cosine
                    if cosine < measuring.REQUIRED_COSINE[DTYPE]:
                        row.problem = f"cosine {cosine:.6f}"
                    self.add(row)
        finally:
            _note_the_model(log, self.note)


def measure_all(
    budget: Budget, add: Callable[[Row], None], note: Callable[[str], None], *, quick: bool
) -> None:
    """Export, serve, check the vectors against transformers', then each load of each setting.

    Raises:
        OutOfTimeError: The time did not suffice.
    """
    cause = obstacle()
    if cause:
        note(f"Serving was left out: {cause}.")
        return
    from bertron_torchscript.export import export

    texts = made_up_texts([max(n, 3) for n in gpu_lengths.read()[:TEXTS]])
    with budget.enforced(), tempfile.TemporaryDirectory(prefix="bertron-served-") as folder:
        checkpoint, repository = Path(folder) / "checkpoint", Path(folder) / "models"
        write_checkpoint(checkpoint)
        export(str(checkpoint), repository, pooling="mean", normalize=True, tokenizer="file")
        expected = expected_vectors(checkpoint, texts, torch.device(DEVICE))
        trial = Trial(repository, texts, expected, add, note)
        for setting in SETTINGS[:1] if quick else SETTINGS:
            trial.measure(setting, LOADS[3:4] if quick else setting.loads)


def _note_the_model(log: Path, note: Callable[[str], None]) -> None:
    """The line in which the server says what it serves with; without it, the log's end."""
    if not log.exists():
        return
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    own = [line for line in lines if "warmed up in" in line]
    if own:
        note(f"Served: {own[-1].split('] ')[-1].strip()}")
    else:
        sys.stderr.write("\n".join(lines[-40:]) + "\n")
