"""One copy of the weights for all instances of a model on a machine's CPUs.

Every instance is a process of its own and loads the model as if it were alone. Then the first one
writes the weights to a file, and each gives up its own copy for a mapping of that file, whose pages
the kernel keeps once. The file is named by the digest of its contents and compared with the own
copy before that is given up, so sharing cannot change a number. It goes with its last user, or if
that one was killed, when an instance starts next.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from bertron_backend.shared_files import (
    closed_unless_kept,
    make_private,
    open_in_use,
    remove_unused,
)

ALIGNMENT = 64  # bytes: a tensor begins with a cache line, as PyTorch's own do
ATTEMPTS = 3  # to find or make the file while others make or remove it


class SharingError(Exception):
    """The weights stay the process's own; the message says why."""


def default_directory() -> Path:
    """Where the instances of this user's servers meet."""
    return Path(tempfile.gettempdir()) / f"bertron-weights-{os.geteuid()}"


class SharedWeights:
    """The parameters of ``model``, mapped from a file that others map too.

    Args:
        model: On the CPU. Its parameters are replaced; their values stay.
        directory: Of the file; made where it is missing, for this user alone.

    Attributes:
        path: The file.
        size: Its bytes.

    Raises:
        SharingError: No room, no permission, or a file with other contents; the model is as it was.
    """

    def __init__(self, model: torch.nn.Module, directory: Path) -> None:
        parameters = list(_parameters(model))
        tensors = [tensor for _, _, tensor in parameters]
        offsets, self.size = _places(tensors)
        self.path = directory / _digest(tensors)
        try:
            make_private(directory)
            remove_unused(directory)
            self._descriptor = self._open(tensors, offsets)
            with closed_unless_kept(self._descriptor) as keep:
                shared = self._map(tensors, offsets)
                keep()
        except (OSError, ValueError) as error:
            raise SharingError(f"weights are not shared in {directory}: {error}") from error
        for (module, name, _), tensor in zip(parameters, shared, strict=True):
            setattr(module, name, torch.nn.Parameter(tensor, requires_grad=False))

    def close(self) -> None:
        """Leave the file to its other users, or remove it; the parameters stay as they are."""
        # By name: the mapping, which stays, has a descriptor of its own to the same lock.
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        os.close(self._descriptor)
        with contextlib.suppress(OSError):  # temporary directories are swept
            remove_unused(self.path.parent)

    def _open(self, tensors: list[torch.Tensor], offsets: list[int]) -> int:
        """A descriptor with a shared lock, which says that the file is in use."""
        for _ in range(ATTEMPTS):
            descriptor = open_in_use(self.path)
            if descriptor is None:
                descriptor = self._make(tensors, offsets)
            if descriptor is not None:
                return descriptor
        raise OSError(f"{self.path.name} came and went {ATTEMPTS} times")

    def _make(self, tensors: list[torch.Tensor], offsets: list[int]) -> int | None:
        """None: another instance was quicker, or took this one's file for a dead one's."""
        descriptor, name = tempfile.mkstemp(dir=self.path.parent)
        try:
            with closed_unless_kept(descriptor) as keep:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                os.posix_fallocate(descriptor, 0, self.size)  # a full disk says so now
                with open(descriptor, "wb", closefd=False) as file:
                    for tensor, offset in zip(tensors, offsets, strict=True):
                        file.seek(offset)
                        file.write(_bytes(tensor).numpy().data)
                os.link(name, self.path)  # complete, or not there
                keep()
            return descriptor
        except (FileExistsError, FileNotFoundError, BlockingIOError):
            return None
        finally:
            Path(name).unlink(missing_ok=True)

    def _map(self, tensors: list[torch.Tensor], offsets: list[int]) -> list[torch.Tensor]:
        # Private: should anyone write to a parameter, then to a page of its own.
        mapping = mmap.mmap(
            self._descriptor,
            self.size,
            flags=mmap.MAP_PRIVATE,
            prot=mmap.PROT_READ | mmap.PROT_WRITE,
        )
        shared = [
            torch.frombuffer(mapping, dtype=tensor.dtype, count=tensor.numel(), offset=offset)
            for tensor, offset in zip(tensors, offsets, strict=True)
        ]
        for tensor, copy in zip(tensors, shared, strict=True):
            if not torch.equal(_bytes(tensor), _bytes(copy)):
                self.path.unlink(missing_ok=True)  # cut off when the machine went down, say
                raise ValueError(f"{self.path.name} did not hold these weights, and was removed")
        return [copy.reshape(tensor.shape) for tensor, copy in zip(tensors, shared, strict=True)]


def _parameters(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str, torch.Tensor]]:
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            yield module, name, parameter.detach()


def _places(tensors: Iterable[torch.Tensor]) -> tuple[list[int], int]:
    """The offset of each, and where the last one ends."""
    offsets, end = [], 0
    for tensor in tensors:
        offsets.append(-(-end // ALIGNMENT) * ALIGNMENT)
        end = offsets[-1] + tensor.numel() * tensor.element_size()
    return offsets, end


def _digest(tensors: Iterable[torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor).numpy().data)
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
