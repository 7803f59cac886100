"""System shared memory of the fake server: regions that clients registered, read and written."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path

from fake_triton_model import Behaviour, RefusalError


@dataclass
class Region:
    """A part of a POSIX shared memory object, mapped into this process."""

    key: str
    offset: int
    byte_size: int
    memory: mmap.mmap


def register(behaviour: Behaviour, name: str, key: str, offset: int, byte_size: int) -> None:
    """Map a region under a name, as shm_open would find it."""
    if name in behaviour.regions:
        raise RefusalError(400, f"shared memory region '{name}' already in manager")
    try:
        with (Path("/dev/shm") / key.lstrip("/")).open("r+b") as file:  # noqa: S108
            memory = mmap.mmap(file.fileno(), 0)
    except OSError:
        raise RefusalError(400, f"Unable to open shared memory region: '{key}'") from None
    if offset + byte_size > len(memory):
        memory.close()
        raise RefusalError(400, f"failed to register shared memory region '{name}': invalid args")
    behaviour.regions[name] = Region(key, offset, byte_size, memory)


def unregister(behaviour: Behaviour, name: str | None) -> None:
    """Forget a region, or all of them; one that is not there is no error."""
    for found in list(behaviour.regions) if not name else [name]:
        region = behaviour.regions.pop(found, None)
        if region is not None:
            region.memory.close()


def status(behaviour: Behaviour, name: str | None) -> list[dict]:
    """The regions, as Triton server lists them."""
    if name and name not in behaviour.regions:
        raise RefusalError(400, f"Unable to find system shared memory region: '{name}'")
    return [
        {"name": key, "key": region.key, "offset": region.offset, "byte_size": region.byte_size}
        for key, region in behaviour.regions.items()
        if name in (None, "", key)
    ]


def _place(behaviour: Behaviour, parameters: dict) -> tuple[mmap.mmap, int, int]:
    """Memory, first byte and size that a tensor's parameters name."""
    name = parameters["shared_memory_region"]
    region = behaviour.regions.get(name)
    if region is None:
        raise RefusalError(400, f"Unable to find shared memory region: '{name}'")
    offset = int(parameters.get("shared_memory_offset", 0))
    size = int(parameters["shared_memory_byte_size"])
    if offset + size > region.byte_size:
        raise RefusalError(400, f"Invalid offset + byte size for shared memory region: '{name}'")
    return region.memory, region.offset + offset, size


def read(behaviour: Behaviour, parameters: dict) -> bytes:
    """The bytes of an input tensor."""
    memory, start, size = _place(behaviour, parameters)
    return memory[start : start + size]


def write(behaviour: Behaviour, parameters: dict, output: str, data: bytes) -> dict:
    """Put an output tensor where its parameters say; returns those of the answer."""
    memory, start, size = _place(behaviour, parameters)
    if len(data) > size:
        raise RefusalError(
            500,
            f"shared memory size specified with the request for output '{output}' ({size} bytes) "
            f"should be at least {len(data)} bytes to hold the results",
        )
    memory[start : start + len(data)] = data
    return {
        "shared_memory_region": parameters["shared_memory_region"],
        "shared_memory_byte_size": len(data),
        **(
            {"shared_memory_offset": parameters["shared_memory_offset"]}
            if parameters.get("shared_memory_offset")
            else {}
        ),
    }
