"""Writing and reading ``model.pt``, the TorchScript archive."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import bertron_kernels  # noqa: F401  an archive loads only where its ops are registered
import torch

MODEL_FILE = "model.pt"


def save(model: torch.nn.Module, path: Path) -> None:
    """Script ``model`` and save it."""
    with _deprecation_accepted():
        torch.jit.save(torch.jit.script(model), str(path))


def load(path: Path, device: torch.device | str = "cpu") -> torch.jit.ScriptModule:
    """Load what :func:`save` wrote, onto ``device``."""
    with _deprecation_accepted():
        loaded: torch.jit.ScriptModule = torch.jit.load(str(path), map_location=device)  # type: ignore[no-untyped-call]
        return loaded.eval()


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
