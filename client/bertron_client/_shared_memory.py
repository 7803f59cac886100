"""Regions of POSIX shared memory, through which a server on this machine takes and gives tensors.

A region belongs to one request at a time. When the answer is not known to have come (a deadline, a
lost connection, a cancelled task), the server may still write into it: such a region is never used
again, its name is removed at once, and the server is told to let go of it when it must be done.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import threading
import time
import weakref
from dataclasses import replace
from multiprocessing.shared_memory import SharedMemory
from typing import Any, Dict, List, Mapping, Optional, Tuple

from ._wire.operations import Infer, Output, SharedSlice

_LEAST_BYTES = 64 * 1024
_ALIGNMENT = 64  # a cache line, so that tensors do not share one
# How long a forward that had begun before its deadline may still take.
_GRACE_S = 10.0


class Region:
    """One shared-memory object of this process's.

    Attributes:
        name: By which the server knows it.
        key: By which the operating system knows it.
        byte_size: Of it.
        is_registered: Whether the server may know it.
    """

    def __init__(self, byte_size: int) -> None:
        self._memory = SharedMemory(create=True, size=byte_size)
        self._buffer: Any = self._memory.buf
        self.byte_size = byte_size
        self.key = f"/{self._memory.name.lstrip('/')}"
        self.name = f"bertron{self.key.replace('/', '-')}"
        self.is_registered = False

    def write(self, offset: int, data: bytes) -> None:
        """Put ``data`` at ``offset``."""
        self._buffer[offset : offset + len(data)] = data

    def read(self, offset: int, byte_size: int) -> bytes:
        """Return a copy of what is at ``offset``: the region is another request's next."""
        return bytes(self._buffer[offset : offset + byte_size])

    def let_go(self) -> None:
        """Unmap it here; in a fork, where it is the parent's."""
        self._buffer = None
        self._memory.close()

    def remove(self) -> None:
        """Remove its name; memory is freed once the server has let go of it too."""
        self.let_go()
        with contextlib.suppress(FileNotFoundError):
            self._memory.unlink()


class Regions:
    """The regions of one client; safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_closed = False
        self._free: List[Region] = []
        self._all: Dict[str, Region] = {}
        self._abandoned: List[Tuple[float, str]] = []  # a heap
        # Also when the program ends without closing the client; a killed one has Python's tracker.
        self._finalizer = weakref.finalize(self, _remove_all, self._all, os.getpid())

    def acquire(self, byte_size: int) -> Region:
        """Return a region of at least ``byte_size`` that nobody else uses."""
        with self._lock:
            for number, region in enumerate(self._free):
                if region.byte_size >= byte_size:
                    return self._free.pop(number)
        region = Region(max(_LEAST_BYTES, 1 << (byte_size - 1).bit_length()))
        with self._lock:
            self._all[region.name] = region
        return region

    def release(self, region: Region) -> None:
        """Take a region back that the server is done with."""
        with self._lock:
            if not self._is_closed:
                self._free.append(region)
                return
        self.abandon(region, 0)

    def abandon(self, region: Region, remaining_s: float) -> None:
        """Remove a region that the server may still write to, for ``remaining_s`` and a little."""
        with self._lock:
            self._all.pop(region.name, None)
            if region.is_registered:
                until = time.monotonic() + remaining_s + _GRACE_S
                heapq.heappush(self._abandoned, (until, region.name))
        region.remove()

    def due(self, at_most: Optional[int] = None) -> List[str]:
        """Take out the names of abandoned regions that the server is done with by now."""
        now = time.monotonic()
        due: List[str] = []
        with self._lock:
            while self._abandoned and self._abandoned[0][0] <= now and len(due) != at_most:
                due.append(heapq.heappop(self._abandoned)[1])
        return due

    def put_back(self, names: List[str]) -> None:
        """Have names be due again: the server may not have let go of them."""
        with self._lock:
            for name in names:
                heapq.heappush(self._abandoned, (0.0, name))

    def drain(self) -> List[str]:
        """Remove every region that is not in use; return the names that the server knows.

        Those in use are removed when their requests end.
        """
        with self._lock:
            self._is_closed = True
            free, self._free = self._free, []
            for region in free:
                del self._all[region.name]
        for region in free:
            region.remove()
        return [region.name for region in free if region.is_registered] + self.due()

    def forget(self) -> None:
        """Let go of what is the parent's: this process is its fork."""
        self._lock = threading.Lock()
        self._finalizer.detach()
        regions, self._free, self._abandoned = list(self._all.values()), [], []
        self._all = {}
        self._finalizer = weakref.finalize(self, _remove_all, self._all, os.getpid())
        for region in regions:
            region.let_go()


def _remove_all(regions: Dict[str, Region], process_id: int) -> None:
    if os.getpid() == process_id:
        for region in list(regions.values()):
            region.remove()


class Layout:
    """Where a request's tensors lie in its region.

    Args:
        operation: With its inputs' bytes, and the size of each output.
    """

    def __init__(self, operation: Infer) -> None:
        self._operation = operation
        self.byte_size = 0
        self._input_offsets = [
            self._place(len(tensor.data))
            for tensor in operation.inputs
            if isinstance(tensor.data, bytes)
        ]
        self._output_offsets = {
            name: self._place(byte_size) for name, byte_size in operation.output_bytes.items()
        }

    def _place(self, byte_size: int) -> int:
        offset = self.byte_size
        self.byte_size += -(-byte_size // _ALIGNMENT) * _ALIGNMENT
        return offset

    def put(self, region: Region) -> Infer:
        """Write the inputs into the region, and return the operation that refers to it."""
        operation = self._operation
        inputs = []
        for tensor, offset in zip(operation.inputs, self._input_offsets):
            assert isinstance(tensor.data, bytes)  # noqa: S101 - placed once
            region.write(offset, tensor.data)
            place = SharedSlice(region.name, offset, len(tensor.data))
            inputs.append(replace(tensor, data=place))
        for name, byte_size in operation.output_bytes.items():
            # No numbers, so that what the server leaves unwritten is not taken for a vector.
            region.write(self._output_offsets[name], b"\xff" * byte_size)
        places: Dict[str, Optional[SharedSlice]] = {
            name: SharedSlice(region.name, self._output_offsets[name], byte_size)
            for name, byte_size in operation.output_bytes.items()
        }
        return replace(operation, inputs=inputs, outputs={**operation.outputs, **places})

    def take(self, outputs: Mapping[str, Output], region: Region) -> Dict[str, Output]:
        """Return the outputs with their bytes, copied out of the region where they lie there."""
        taken = dict(outputs)
        for name, byte_size in self._operation.output_bytes.items():
            output = outputs.get(name)
            if output is not None and output.data is None:
                data = region.read(self._output_offsets[name], byte_size)
                taken[name] = replace(output, data=data)
        return taken
