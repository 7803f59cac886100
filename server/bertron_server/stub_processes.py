"""The processes of Python models. Triton server starts each once, and never again when it ends."""

from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
# The program that runs a Python model; its arguments name the model's file, .../NAME/VERSION/FILE.
_STUB = "triton_python_backend_stub"
# Of /proc/PID/stat, counted from the first one behind the name, which may hold anything.
_STATE, _GROUP, _STARTED = 0, 2, 19
_ENDED = "ZX"  # a zombie stays until Triton server asks for it


@dataclass(frozen=True)
class Stub:
    """A process of a model.

    Attributes:
        pid: Its id, which another process may get later.
        started: When it was started, in clock ticks since boot: no other process has both.
        model: The name of its model.
    """

    pid: int
    started: int
    model: str

    def has_ended(self) -> bool:
        """Whether this process is gone, or about to be."""
        fields = _stat(self.pid)
        return fields is None or fields[_STATE] in _ENDED or int(fields[_STARTED]) != self.started


def running_stubs(server_pid: int) -> list[Stub]:
    """Return the stubs of a server that leads its process group, by process id."""
    stubs = []
    for pid in sorted(int(path.name) for path in PROC.glob("[0-9]*")):
        fields = _stat(pid)
        if fields is None or int(fields[_GROUP]) != server_pid or fields[_STATE] in _ENDED:
            continue
        program, *arguments = _command_line(pid)
        if Path(program).name == _STUB:
            stubs.append(Stub(pid, int(fields[_STARTED]), _model_of(arguments)))
    return stubs


def _stat(pid: int) -> list[str] | None:
    """The fields behind the process's name; None where there is no such process."""
    try:
        text = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def _command_line(pid: int) -> list[str]:
    try:
        text = (PROC / str(pid) / "cmdline").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    return text.split("\0")


def _model_of(arguments: list[str]) -> str:
    model_file = Path(next(iter(arguments), ""))
    return model_file.parts[-3] if len(model_file.parts) > 2 else "?"
