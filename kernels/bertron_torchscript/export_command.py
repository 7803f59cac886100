"""``bertron export``: the command line around :func:`bertron_torchscript.export.export`."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bertron_torchscript.checkpoint import POOLING_MODES, TOKENIZERS
from bertron_torchscript.errors import ExportError

MAX_CALIBRATION_TEXTS = 500  # they are run once for each product of the model
DTYPE_NAMES = ("float32", "bfloat16", "float16", "int8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = "Turn a Hugging Face checkpoint into the model that Triton server loads."
    parser.add_argument(
        "source",
        help="a directory with config.json, *.safetensors and tokenizer.json, or a hub name",
    )
    parser.add_argument(
        "--model-repository", type=Path, default=Path("model_repository"), metavar="DIR"
    )
    parser.add_argument("--name", help="of the ensemble; the default is text_embedding")
    parser.add_argument(
        "--called",
        metavar="TEXT",
        help="what banners call the model; default: its hub or folder name",
    )
    parser.add_argument("--pooling", choices=POOLING_MODES, help="default: what modules.json says")
    parser.add_argument(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        help="give embeddings length 1; default: what modules.json says, else no",
    )
    parser.add_argument(
        "--pooling-layer",
        type=int,
        default=-1,
        metavar="N",
        help="pool this layer's output: -1 the last (default), -2 the one before",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPE_NAMES,
        help="of the matrix products; default: float32 on a CPU and float16 on a GPU",
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="texts like yours, a line each, by which int8 products are chosen",
    )
    parser.add_argument(
        "--max-tokens", type=int, metavar="N", help="longest text; default: the model's"
    )
    parser.add_argument(
        "--tokenizer",
        choices=TOKENIZERS,
        help="export tokenizer.json as it is, or what transformers makes of the directory; "
        "default: the file, where the two read texts alike",
    )
    parser.add_argument("--sha256", metavar="HEX", help="what the weights must hash to")


def run(args: argparse.Namespace) -> int:
    """Export; 0 when the model is in place, 1 with one line on stderr when it is not."""
    started = time.monotonic()
    try:
        from bertron_torchscript.export import export

        with _ended_by_sigterm():
            manifest = export(
                args.source,
                args.model_repository,
                name=args.name,
                called=args.called,
                pooling=args.pooling,
                normalize=args.normalize,
                pooling_layer=args.pooling_layer,
                dtype=args.dtype,
                max_tokens=args.max_tokens,
                tokenizer=args.tokenizer,
                calibration=_lines(args.calibration),
                expected_sha256=args.sha256,
                progress=lambda message: _say(f"  {message}"),
            )
    except ExportError as error:
        _say(f"bertron export: {error}")
        return 1
    _say(
        f"exported {manifest.name} ({manifest.architecture}, {manifest.num_layers} layers, "
        f"{manifest.dtype}, {manifest.pooling} pooling, {manifest.embedding_size} dimensions, "
        f"up to {manifest.limits.max_tokens_per_text} tokens) to {args.model_repository} "
        f"in {time.monotonic() - started:.1f} s; smallest cosine with transformers "
        f"{manifest.verification.min_cosine:.7f}"
    )
    if (hint := quicker_dtype(manifest.dtype)) is not None:
        _say(hint)
    return 0


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends what runs as Ctrl-C does: what was begun is removed."""
    before = signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def quicker_dtype(dtype: str) -> str | None:
    """What to say where this CPU is quicker in another dtype than the one that was exported."""
    from bertron_kernels import native

    from bertron_torchscript.verification import REQUIRED_COSINE

    if dtype != "float32" or not native.HAS_FAST_BF16:
        return None
    return (
        "this CPU has instructions for bfloat16 and int8: exported with --dtype bfloat16 or int8, "
        "it serves more texts, whose vectors differ a little (cosine with these at least "
        f"{REQUIRED_COSINE['bfloat16']} and {REQUIRED_COSINE['int8']})"
    )


def _lines(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        return path.read_text(encoding="utf-8").splitlines()[:MAX_CALIBRATION_TEXTS]
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"{path} cannot be read: {error}") from error


def _say(line: str) -> None:
    """Say it to whoever reads; an export does not end because nobody does."""
    if sys.stderr is None:  # closed before the start
        return
    try:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):  # from here on nowhere, also at the exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
