"""Writing and reading ``model.pt``, the TorchScript archive."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import bertron_kernels  # noqa: F401  an archive loads only where its ops are registered
import torch
from bertron_kernels.native import HAS_FAST_BF16

from bertron_torchscript.bert import LINEARS
from bertron_torchscript.errors import ManifestError

MODEL_FILE = "model.pt"


def save(model: torch.nn.Module, path: Path) -> None:
    """Script ``model`` and save it."""
    with _deprecation_accepted():
        torch.jit.save(torch.jit.script(model), str(path))


def load(path: Path, device: torch.device | str = "cpu") -> torch.jit.ScriptModule:
    """Load what :func:`save` wrote onto ``device``, in the dtypes it is quick in and packed."""
    with _deprecation_accepted():
        model: torch.jit.ScriptModule = torch.jit.load(str(path), map_location=device)  # type: ignore[no-untyped-call]
    set_dtypes(model, torch.device(device))
    pack(model)
    return model.eval()


def set_dtypes(model: torch.nn.Module, device: torch.device) -> None:
    """Choose the dtypes of everything but the products' weights, which the export chose.

    On CUDA everything has the weights' dtype. On the CPU the residual stream, the norms and the
    embeddings stay float32, and only what a product alone reads, queries, keys, values and the
    inner activations, is bfloat16. Where bfloat16 is not quick all is float32, and float16 on every
    CPU.
    """
    layers = list(model.layers.children())  # type: ignore[union-attr]
    weights = {getattr(layer, f"{name}_weight").dtype for layer in layers for name in LINEARS}
    if device.type != "cpu":
        if torch.int8 in weights:
            raise ManifestError(f"the model was exported with int8 products, which {device} lacks")
        model.to(next(iter(weights), torch.float32))
    elif torch.float16 in weights or not HAS_FAST_BF16:
        model.float()
    elif weights & {torch.bfloat16, torch.int8}:
        for layer in layers:
            for name in ("qkv", "intermediate"):  # an output has its bias's dtype
                bias = getattr(layer, f"{name}_bias").to(torch.bfloat16)
                setattr(layer, f"{name}_bias", torch.nn.Parameter(bias, requires_grad=False))


def pack(model: torch.nn.Module) -> None:
    """Replace every matrix product's weight by its packed form, once; no original is kept."""
    for layer in model.layers.children():  # type: ignore[union-attr]
        for name in LINEARS:
            packed = torch.ops.bertron.pack_weight(
                getattr(layer, f"{name}_weight"),
                getattr(layer, f"{name}_scale"),
                getattr(layer, f"{name}_input_scale"),
            )
            setattr(layer, f"{name}_weight", torch.nn.Parameter(packed, requires_grad=False))


def no_profiling() -> contextlib.AbstractContextManager[None]:
    """Run without TorchScript's profiling executor.

    It would recompile at the first calls (98 and 22 ms against 4 and 1) and finds nothing to fuse,
    since the element-wise work is inside our ops.
    """
    guard: contextlib.AbstractContextManager[None] = torch.jit.optimized_execution(False)  # type: ignore[attr-defined]
    return guard


@contextlib.contextmanager
def _deprecation_accepted() -> Iterator[None]:
    # TorchScript is deprecated upstream; docs/decisions/0002 says why it is used.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit.*")
        yield
