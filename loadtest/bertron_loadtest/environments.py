"""Virtual environments for what must stay out of the project's own: pinned, and made once."""

import importlib.metadata
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from bertron_loadtest.programs import run_program

CHECKOUT = Path(__file__).resolve().parents[2]
CONSTRAINTS = CHECKOUT / "constraints.txt"
_STAMP = ".installed"
_PIP = ("-m", "pip", "--disable-pip-version-check")


def make_environment(folder: Path, installs: Sequence[Sequence[str]], *, timeout_s: float) -> Path:
    """Make a virtual environment, unless the same one is there, and return its Python.

    Args:
        folder: Where; an environment of other packages is made anew, as is one that was not
            finished.
        installs: Arguments of each ``pip install``, in order.
        timeout_s: Of everything together.

    Raises:
        OSError: It cannot be made; the message says why, in a line.
    """
    python, stamp = folder / "bin" / "python", folder / _STAMP
    wanted = "\n".join(" ".join(install) for install in installs)
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    sys.stderr.write(f"installing into {folder}\n")
    deadline = time.monotonic() + timeout_s
    stamp.unlink(missing_ok=True)
    run_program([sys.executable, "-m", "venv", "--clear", str(folder)], timeout_s=timeout_s)
    for install in installs:
        command = [str(python), *_PIP, "install", "--quiet", *install]
        run_program(command, timeout_s=deadline - time.monotonic())
    stamp.write_text(wanted, encoding="utf-8")
    return python


def torch_install() -> list[str]:
    """Return the arguments of ``pip install`` for the torch of ``constraints.txt``.

    In the build that this environment has, so that beside a CPU build no other is fetched; from
    ``TORCH_INDEX_URL`` too, as in the Makefile.

    Raises:
        OSError: There is no ``constraints.txt``: this is no checkout.
    """
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    pin = next(line for line in lines if line.startswith("torch=="))
    with suppress(importlib.metadata.PackageNotFoundError):
        ours = f"torch=={importlib.metadata.version('torch')}"
        pin = ours if ours.partition("+")[0] == pin else pin
    index = os.environ.get("TORCH_INDEX_URL")
    return [pin, *(["--extra-index-url", index] if index else [])]


def versions_in(folder: Path, packages: Sequence[str]) -> dict[str, str]:
    """Return the packages' versions in an environment; without those that it has not."""
    places = [str(place) for place in folder.glob("lib/python*/site-packages")]
    found = {
        # Names differ in case and in "-" or "_" from one tool to the next.
        dist.name.lower().replace("_", "-"): dist.version
        for dist in importlib.metadata.distributions(path=places)
    }
    normal = {name: name.lower().replace("_", "-") for name in packages}
    return {name: found[normal[name]] for name in packages if normal[name] in found}


def download_wheel(requirement: str, folder: Path, *, timeout_s: float) -> Path:
    """Download the wheel of one package, without what it needs, and return it.

    Raises:
        OSError: It cannot be downloaded.
    """
    command = [sys.executable, *_PIP, "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    run_program([*command, "--dest", str(folder), requirement], timeout_s=timeout_s)
    return next(folder.glob(f"{requirement.partition('==')[0]}-*.whl"))
