"""Says what this machine lacks for the server side, before anything is downloaded.

Runs under the system's own Python, so it uses the standard library only.
"""

import importlib.util
import platform
import sys
import sysconfig
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
SUPPORTED = ((3, 11), (3, 12))  # nvidia-pytriton's stubs and torch's wheels meet here


def shared_libpython() -> bool:
    """Whether this interpreter's own libpythonX.Y.so.1.0 exists: Triton's stub links to it."""
    name = f"libpython{sys.version_info[0]}.{sys.version_info[1]}.so.1.0"
    places = [sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("LIBPL")]
    places += [f"/usr/lib/{sysconfig.get_config_var('MULTIARCH')}", "/usr/lib", "/usr/lib64"]
    return any(place and (Path(place) / name).exists() for place in places)


def problems() -> list[str]:
    """What is missing, each with the command that brings it."""
    found = []
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if sys.version_info[:2] not in SUPPORTED:
        wanted = " or ".join(".".join(map(str, v)) for v in SUPPORTED)
        found.append(f"Python {version}: use {wanted}, for example `make PYTHON=python3.11 demo`")
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        found.append(
            f"{platform.system()} on {platform.machine()}: tritonserver comes as a Linux x86_64 "
            "binary; only the client (pip install bertron) works here"
        )
    if importlib.util.find_spec("ensurepip") is None:
        found.append(f"the venv module: apt-get install python{version}-venv")
    if platform.system() == "Linux" and not shared_libpython():
        found.append(f"libpython{version}.so.1.0: apt-get install libpython{version}")
    if not str(CHECKOUT).isascii():
        found.append(f"a place whose path is ASCII: {CHECKOUT} cannot hold Triton server's Python")
    return found


if __name__ == "__main__":
    missing = problems()
    if missing:
        sys.exit("This machine lacks:\n" + "\n".join(f"  - {line}" for line in missing))
