"""Writing and reading ``model.pt``, the TorchScript archive."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import bertron_kernels  # noqa: F401  an archive loads only where its ops are registered
import torch
from bertron_kernels.native import HAS_FAST_BF16, INSTRUCTION_SET

from bertron_torchscript.bert import LINEARS
from bertron_torchscript.errors import ExportError, ManifestError

MODEL_FILE = "model.pt"


def save(model: torch.nn.Module, path: Path) -> None:
    """Script ``model`` and save it.

    Raises:
        ExportError: The file cannot be written.
    """
    with _deprecation_accepted():
        scripted = torch.jit.script(model)
        _make_room(path, sum(tensor.nbytes for tensor in scripted.state_dict().values()))
        torch.jit.save(scripted, str(path))


def _make_room(path: Path, size: int) -> None:
    """See that the disk takes so many bytes: where it does not, PyTorch would end the process."""
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    try:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error.strerror}") from error


def load(
    path: Path, device: torch.device | str = "cpu", gpu_dtype: str | None = None
) -> torch.jit.ScriptModule:
    """Load what :func:`save` wrote onto ``device``, packed, in the dtypes of :func:`set_dtypes`."""
    with _deprecation_accepted():
        model: torch.jit.ScriptModule = torch.jit.load(str(path), map_location=device)  # type: ignore[no-untyped-call]
    set_dtypes(model, torch.device(device), gpu_dtype)
    pack(model)
    return model.eval()


def set_dtypes(model: torch.nn.Module, device: torch.device, gpu_dtype: str | None = None) -> None:
    """Choose the dtypes that a model is computed in on a device.

    The products' weights stay as the export wrote them, but for ``gpu_dtype``. With bfloat16 or
    int8 ones the residual stream, the norms and the embeddings are float32, since bfloat16 there
    costs short texts their accuracy; only what a product alone reads, queries, keys, values and
    the inner activations, is bfloat16, and not even that on a CPU without bfloat16 instructions,
    where the CPU library widens bfloat16 weights as it multiplies. With float16 weights all is
    float16 on CUDA, and float32 on the CPU; so is all with bfloat16 ones on such a CPU without
    the library.

    Args:
        model: Not packed yet; converted in place.
        device: Where it will run.
        gpu_dtype: ``float16``, ``bfloat16`` or ``float32`` of the products on CUDA; None: the
            file's own.

    Raises:
        ManifestError: The weights are int8 and the device is not a CPU.
    """
    layers = list(model.layers.children())  # type: ignore[union-attr]
    weights = {getattr(layer, f"{name}_weight").dtype for layer in layers for name in LINEARS}
    if device.type != "cpu":
        if torch.int8 in weights:
            raise ManifestError(f"the model was exported with int8 products, which {device} lacks")
        dtype = getattr(torch, gpu_dtype) if gpu_dtype else next(iter(weights), torch.float32)
        if dtype == torch.bfloat16:
            model.float()
            for layer in layers:
                _convert(layer, [f"{name}_weight" for name in LINEARS], dtype)
                _convert(layer, _READ_BY_PRODUCTS, dtype)
        else:
            model.to(dtype)
    elif torch.float16 in weights or not (HAS_FAST_BF16 or INSTRUCTION_SET):
        model.float()
    elif HAS_FAST_BF16 and weights & {torch.bfloat16, torch.int8}:
        for layer in layers:
            _convert(layer, _READ_BY_PRODUCTS, torch.bfloat16)


# Products whose output only products and attention read; an output has its bias's dtype.
_READ_BY_PRODUCTS = ("qkv_bias", "intermediate_bias")


def _convert(layer: torch.nn.Module, names: Iterable[str], dtype: torch.dtype) -> None:
    for name in names:
        converted = getattr(layer, name).to(dtype)
        setattr(layer, name, torch.nn.Parameter(converted, requires_grad=False))


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


def freeze(model: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """Write the parameters into the graph, which then asks no module for them.

    Takes 0.06 to 0.1 ms off a forward of MiniLM's six layers on a CPU (Zen 3; a text of 8 tokens
    takes 1.9). Parameters cannot be replaced any more.

    Returns:
        A module with ``forward`` and ``forward_positions`` alone.
    """
    with _deprecation_accepted():
        return torch.jit.freeze(  # type: ignore[no-any-return]
            model, preserved_attrs=["forward_positions"], optimize_numerics=False
        )


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
