"""Checkpoint → ``model.pt`` in a model repository, proven before it is put there."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from bertron_torchscript.bert import LINEARS, Bert
from bertron_torchscript.checkpoint import Checkpoint, EncoderConfig, read_checkpoint
from bertron_torchscript.errors import ExportError
from bertron_torchscript.manifest import Limits, Manifest, Verification, sha256_of
from bertron_torchscript.model_file import MODEL_FILE, load, no_profiling, save
from bertron_torchscript.quantization import quantize, with_stretches
from bertron_torchscript.repository import (
    DEFAULT_GPU_DTYPE,
    GPU_DTYPES,
    check_free,
    model_names,
    write_configs,
)
from bertron_torchscript.tokenizer_file import write_tokenizer
from bertron_torchscript.verification import REQUIRED_COSINE, TEXTS, packed, tokenize, verify
from bertron_torchscript.weights import map_weights, read_safetensors

# int8: products of int8 weights, everything else bfloat16.
DTYPES = ("float32", "bfloat16", "float16", "int8")
TOKENIZER_FILE = "tokenizer.json"
STAGED_FILES = frozenset({MODEL_FILE, TOKENIZER_FILE})
SWEPT_AFTER_S = 60  # a directory that was made just now may not be locked yet


def export(
    source: str,
    model_repository: Path,
    *,
    name: str | None = None,
    called: str | None = None,
    pooling: str | None = None,
    normalize: bool | None = None,
    pooling_layer: int = -1,
    dtype: str | None = None,
    max_tokens: int | None = None,
    tokenizer: str | None = None,
    calibration: Sequence[str] = (),
    expected_sha256: str | None = None,
    progress: Callable[[str], None] = lambda _message: None,
) -> Manifest:
    """Export ``source`` into ``model_repository``; nothing is left there unless all of it is right.

    Args:
        source: A Hugging Face directory, or a hub name where there is a network.
        model_repository: Where Triton server's models live; made when missing.
        name: Triton's name of the ensemble; None gives the default three models.
        called: What people call the model, for banners and logs.
        pooling: See :func:`bertron_torchscript.checkpoint.read_checkpoint`.
        normalize: As ``pooling``.
        pooling_layer: Whose output is pooled: -1 the last layer, -2 the one before it (as in
            bert-as-service), or counted from 1; 0 is the embeddings. Layers above are pruned.
        dtype: One of DTYPES; None: float32, which a GPU computes in float16.
        max_tokens: As ``pooling``.
        tokenizer: See :func:`bertron_torchscript.tokenizer_file.write_tokenizer`.
        calibration: Texts like those to come, by which int8 products are chosen, beside ours.
        expected_sha256: What the weights must hash to (a checkpoint of one file only).
        progress: Told each step, in a few words.

    Returns:
        The manifest that was written beside the model.

    Raises:
        ExportError: See the message; the repository is as it was before.
    """
    gpu_dtype = dtype if dtype in GPU_DTYPES else DEFAULT_GPU_DTYPE
    dtype = dtype or "float32"
    if dtype not in DTYPES:
        raise ExportError(f"dtype {dtype!r} is not known; choose one of {', '.join(DTYPES)}")
    check_free(model_repository, model_names(name))
    progress(f"reading {source}")
    checkpoint = read_checkpoint(
        source,
        called=called,
        pooling=pooling,
        normalize=normalize,
        max_tokens=max_tokens,
        tokenizer=tokenizer,
    )
    for note in checkpoint.notes:
        progress(note)
    source_sha256 = {path.name: sha256_of(path) for path in checkpoint.source_files}
    _check_sha256(checkpoint, source_sha256, expected_sha256)
    num_layers = kept_layers(pooling_layer, checkpoint.config)

    with _staging(model_repository) as staging:
        checkpoint = write_tokenizer(checkpoint, staging / TOKENIZER_FILE, progress)
        model, skipped = build(checkpoint, num_layers)
        if skipped:
            progress(f"leaving out {len(skipped)} weights of the pooler or of other heads")
        progress(f"scripting {num_layers} layers in {dtype}")
        saved = staging / MODEL_FILE
        if dtype == "int8":
            texts = packed(with_stretches(tokenize(checkpoint, (*TEXTS, *calibration))))
            quantize(model, texts, REQUIRED_COSINE[dtype], progress)
        else:
            narrow(model, getattr(torch, dtype))
        save(model, saved)
        verification = verify_saved(saved, checkpoint, num_layers, dtype, progress)
        manifest = _manifest(
            checkpoint,
            dtype,
            num_layers,
            verification,
            source_sha256,
            files_sha256={
                path.name: sha256_of(path) for path in (saved, checkpoint.tokenizer_file)
            },
        )
        _install(staging, model_repository, name, manifest, gpu_dtype)
    return manifest


def build(checkpoint: Checkpoint, num_layers: int) -> tuple[Bert, list[str]]:
    """The float32 module with the checkpoint's weights, and the names of weights left out."""
    state, skipped = map_weights(
        read_safetensors(checkpoint.weight_files), checkpoint.config, checkpoint.weight_files[0]
    )
    pruned = [f"layers.{layer}." for layer in range(num_layers, checkpoint.config.num_layers)]
    state = {key: value for key, value in state.items() if not key.startswith(tuple(pruned))}
    model = Bert(checkpoint.config, checkpoint.pooling, num_layers).eval()
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        cause = str(error).splitlines()[-1].strip()
        raise ExportError(
            f"{checkpoint.weight_files[0]} does not fit the config.json beside it: {cause}"
        ) from error
    return model, skipped


def narrow(model: Bert, dtype: torch.dtype) -> None:
    """Give the products' weights ``dtype``; what surrounds them is narrowed where it is loaded.

    Raises:
        ExportError: A parameter is beyond what ``dtype`` can hold.
    """
    limit = torch.finfo(dtype).max
    for name, parameter in model.named_parameters():
        largest = float(parameter.abs().max())
        if largest > limit:
            raise ExportError(f"{name} has the value {largest:g}, {dtype} holds at most {limit:g}")
    for layer in model.layers:
        for name in LINEARS:
            weight = getattr(layer, f"{name}_weight").to(dtype)
            setattr(layer, f"{name}_weight", torch.nn.Parameter(weight, requires_grad=False))


def kept_layers(pooling_layer: int, config: EncoderConfig) -> int:
    """How many layers are computed so that ``pooling_layer``'s output can be pooled.

    Raises:
        ExportError: The model has no such layer.
    """
    kept = pooling_layer if pooling_layer >= 0 else config.num_layers + 1 + pooling_layer
    if not 0 <= kept <= config.num_layers:
        raise ExportError(
            f"--pooling-layer {pooling_layer} is outside -{config.num_layers + 1}.."
            f"{config.num_layers}: the model has {config.num_layers} layers"
        )
    return kept


def verify_saved(
    path: Path,
    checkpoint: Checkpoint,
    num_layers: int,
    dtype: str,
    progress: Callable[[str], None],
) -> Verification:
    """Load ``path`` again and compare it with transformers."""
    loaded = load(path)
    with torch.inference_mode(), no_profiling():
        return verify(
            loaded.forward_packed,
            checkpoint,
            hidden_state=num_layers,
            dtype=dtype,
            progress=progress,
        )


def _check_sha256(checkpoint: Checkpoint, found: dict[str, str], expected: str | None) -> None:
    if expected is None:
        return
    if len(checkpoint.weight_files) != 1:
        raise ExportError(
            f"{checkpoint.directory}: the weights are {len(checkpoint.weight_files)} files; "
            "--sha256 names one"
        )
    path = checkpoint.weight_files[0]
    if found[path.name] != expected.lower():
        raise ExportError(f"{path} has sha256 {found[path.name]}, expected {expected}")


def _manifest(
    checkpoint: Checkpoint,
    dtype: str,
    num_layers: int,
    verification: Verification,
    source_sha256: dict[str, str],
    files_sha256: dict[str, str],
) -> Manifest:
    config, pooling = checkpoint.config, checkpoint.pooling
    return Manifest(
        name=checkpoint.name,
        architecture=config.architecture,
        dtype=dtype,
        pooling=pooling.mode,
        normalize=pooling.normalize,
        num_layers=num_layers,
        pruned_layers=config.num_layers - num_layers,
        hidden_size=config.hidden_size,
        embedding_size=config.hidden_size * (2 if pooling.mode == "mean-max" else 1),
        vocab_size=config.vocab_size,
        type_vocab_size=config.type_vocab_size,
        limits=Limits(max_tokens_per_text=checkpoint.max_tokens_per_text),
        verification=verification,
        source_sha256=source_sha256,
        files_sha256=files_sha256,
        versions={
            "bertron": _own_version(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": importlib.metadata.version("transformers"),
        },
    )


def _own_version() -> str:
    try:
        return importlib.metadata.version("bertron")
    except importlib.metadata.PackageNotFoundError:  # a checkout on the path
        return "not installed"


@contextlib.contextmanager
def _staging(model_repository: Path) -> Iterator[Path]:
    """A directory for what is not proven yet; always removed.

    Beside the repository where that can be written: Triton server, started meanwhile or after an
    export was killed, takes every directory inside for a model. What killed exports have left is
    removed by the next.
    """
    existed = model_repository.is_dir()
    try:
        model_repository.mkdir(parents=True, exist_ok=True)
        place = _staging_place(model_repository)
        _sweep({place, model_repository})
        staging = Path(tempfile.mkdtemp(prefix=_staging_prefix(), dir=place))
    except OSError as error:
        raise ExportError(f"{model_repository} cannot be written: {error.strerror}") from error
    try:
        with _locked(staging):
            yield staging
    except OSError as error:  # a full disk, above all
        raise ExportError(f"{error.filename or staging}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if not existed:
            with contextlib.suppress(OSError):  # not empty: the export succeeded
                model_repository.rmdir()


def _staging_place(model_repository: Path) -> Path:
    """The repository's own parent, unless that is another file system or not ours to write."""
    parent = model_repository.resolve().parent
    is_same = parent.stat().st_dev == model_repository.stat().st_dev
    return parent if is_same and os.access(parent, os.W_OK | os.X_OK) else model_repository


def _staging_prefix() -> str:
    """With the host: another one's locks cannot be seen on a file system that both have."""
    return f".bertron-export-{platform.node()}-"


def _sweep(places: set[Path]) -> None:
    """Remove what exports of ours that were killed have left in ``places``, and nothing else."""
    for left in (path for place in places for path in place.glob(f"{_staging_prefix()}*")):
        with contextlib.suppress(OSError):  # another export's, which has just ended
            found = left.lstat()
            is_own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
            is_old = time.time() - found.st_mtime > SWEPT_AFTER_S
            if is_own and is_old and {path.name for path in left.iterdir()} <= STAGED_FILES:
                with _locked(left) as is_free:
                    if is_free:
                        for name in STAGED_FILES:
                            (left / name).unlink(missing_ok=True)
                        left.rmdir()


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[bool]:
    """Whether the directory's lock was free; it is held until this ends, or the process does."""
    try:
        import fcntl
    except ImportError:  # Windows: nothing is locked, and nothing swept
        yield False
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_free = True
        except OSError:  # another one has it, or the file system has no locks
            is_free = False
        yield is_free
    finally:
        os.close(descriptor)


def _install(
    staging: Path, repository: Path, name: str | None, manifest: Manifest, gpu_dtype: str
) -> None:
    """Put the files in place; without its manifest, an export cut off half-way never loads."""
    names = model_names(name)
    placed = {"tokenizer": TOKENIZER_FILE, "bert": MODEL_FILE}
    versions = {step: repository / names[step] / "1" for step in placed}
    with _brought_near(staging, {versions[step]: file for step, file in placed.items()}) as near:
        for version in versions.values():
            (version / "manifest.json").unlink(missing_ok=True)
        write_configs(repository, name=name, manifest=manifest, gpu_dtype=gpu_dtype)
        for step, file_name in placed.items():
            os.replace(near[versions[step]], versions[step] / file_name)  # noqa: PTH105
    for version in versions.values():
        manifest.write(version)


@contextlib.contextmanager
def _brought_near(staging: Path, files: Mapping[Path, str]) -> Iterator[dict[Path, Path]]:
    """Each file in the directory where it is wanted, under another name; then a rename is enough.

    A mount may lie between, also on one file system, and then this copies. Until all are there the
    old files are untouched, and what fails here leaves nothing.
    """
    made: list[Path] = []
    near: dict[Path, Path] = {}
    try:
        for directory, name in files.items():
            for missing in [path for path in (directory.parent, directory) if not path.is_dir()]:
                missing.mkdir()
                made.append(missing)
            near[directory] = directory / f".{name}.new"
            shutil.move(staging / name, near[directory])
        yield near
    except BaseException:
        for brought in near.values():
            brought.unlink(missing_ok=True)
        for directory in reversed(made):
            with contextlib.suppress(OSError):  # what came after has put more there
                directory.rmdir()
        raise
