"""Finds tritonserver: on the PATH, as in an NGC container, or in the wheel nvidia-pytriton."""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bertron_server.errors import InstallationError

Version = tuple[int, int]

# What each wheel carries; the binary itself has no --version.
WHEEL = "nvidia-pytriton"
WHEEL_SERVER_VERSION: Mapping[str, Version] = {"0.7.0": (2, 51)}

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
LIBPYTHON = f"libpython{PYTHON}.so.1.0"

# Making three links takes a millisecond.
LOCK_TIMEOUT_S = 10.0
LOCK_POLL_S = 0.01


@dataclass(frozen=True)
class Installation:
    """One tritonserver and what has to be around it.

    Attributes:
        binary: The program itself.
        version: Its major and minor version, or None where nothing tells.
        backend_directory: Where its backends are, or None for the binary's own default.
        library_directories: What goes in front of LD_LIBRARY_PATH.
    """

    binary: Path
    version: Version | None
    backend_directory: Path | None = None
    library_directories: tuple[Path, ...] = ()


def find_installation() -> Installation:
    """Return the tritonserver to run: the PATH's first, then the installed wheel's.

    Raises:
        InstallationError: There is neither, the wheel lacks something that it needs, or this
            Python's environment is where Triton server's cannot look.
    """
    _check_places(sys.prefix, str(Path(__file__).parent))
    on_path = shutil.which("tritonserver")
    if on_path:
        binary = Path(on_path).resolve()
        return Installation(binary=binary, version=_container_version(binary))
    root = _wheel_root()
    if root is None:
        raise InstallationError(
            "found no tritonserver, neither on the PATH nor in a wheel; "
            "run `pip install 'bertron[server]'` (Linux x86_64), or start inside an NGC container "
            "nvcr.io/nvidia/tritonserver"
        )
    return _wheel_installation(root)


def _check_places(*places: str) -> None:
    """Refuse what the Python in Triton server's stub cannot read, whose paths are ASCII."""
    for place in places:
        if not place.isascii():
            raise InstallationError(
                f"the Python of Triton server's models finds nothing in {place}: install Bertron, "
                "and make its environment, in a directory whose path is ASCII"
            )


def _container_version(binary: Path) -> Version | None:
    """The version that the container states: its file beside bin/, else its environment."""
    stated = binary.parent.parent / "TRITON_VERSION"
    if stated.is_file():
        return parse_version(stated.read_text(encoding="utf-8"))
    return parse_version(os.environ.get("TRITON_SERVER_VERSION", ""))


def parse_version(text: str) -> Version | None:
    """Read "2.51.0" as (2, 51); None where there is no version in the text."""
    match = re.match(r"\s*(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None


def _wheel_root() -> Path | None:
    """The wheel's tritonserver folder, found without importing pytriton."""
    spec = importlib.util.find_spec("pytriton")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        root = Path(location) / "tritonserver"
        if (root / "bin" / "tritonserver").is_file():
            return root
    return None


def _wheel_installation(root: Path) -> Installation:
    wheel_version = importlib.metadata.version(WHEEL)
    site_packages = root.parent.parent
    return Installation(
        binary=root / "bin" / "tritonserver",
        version=WHEEL_SERVER_VERSION.get(wheel_version),
        backend_directory=prepare_backend_directory(root, wheel_version),
        # The stub dies on libcudart without the first, and the server then hangs in loading.
        library_directories=(site_packages / "nvidia_pytriton.libs", find_libpython().parent),
    )


def find_libpython() -> Path:
    """Return the shared library that the Python backend's stub embeds.

    Raises:
        InstallationError: This Python has none, and neither has the system.
    """
    variables = sysconfig.get_config_vars()
    directories = [
        variables.get("LIBDIR"),
        variables.get("LIBPL"),
        f"{sys.base_prefix}/lib",
        f"/usr/lib/{variables.get('MULTIARCH')}",
        "/usr/lib",
        "/usr/lib64",
    ]
    for directory in filter(None, directories):
        library = Path(directory) / LIBPYTHON
        if library.exists():
            return library
    raise InstallationError(
        f"Triton server's Python backend needs {LIBPYTHON}, which is not on this machine; "
        f"on Debian and Ubuntu run `apt-get install libpython{PYTHON}`"
    )


def prepare_backend_directory(root: Path, wheel_version: str) -> Path:
    """Return a backend directory whose `python` folder holds library, module and stub together.

    The wheel keeps one stub for each Python version in a folder apart, where Triton server does
    not look. Links, not copies: the loader resolves the stub's $ORIGIN through the link, so that
    the stub's relative rpath still leads to the wheel's libraries.

    Raises:
        InstallationError: The wheel has no stub for this Python, or the cache is not writable.
    """
    stub = root / "python_backend_stubs" / PYTHON / "triton_python_backend_stub"
    files = [
        root / "backends" / "python" / "libtriton_python.so",
        root / "backends" / "python" / "triton_python_backend_utils.py",
        stub,
    ]
    if not stub.is_file():
        have = ", ".join(sorted(path.name for path in stub.parent.parent.glob("*")))
        raise InstallationError(
            f"{WHEEL} {wheel_version} has no Python backend for Python {PYTHON}, only for {have}"
        )
    place = hashlib.sha256(os.fsencode(root)).hexdigest()[
        :12
    ]  # the links lead into one environment
    directory = _cache_directory() / f"{WHEEL}-{wheel_version}-python{PYTHON}-{place}"
    if not _is_complete(directory, files):
        try:
            directory.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with _locked(directory.parent):
                if not _is_complete(directory, files):  # another process may have been faster
                    _link_together(files, directory)
        except OSError as error:
            raise InstallationError(
                f"cannot write {directory}: {error.strerror}; set XDG_CACHE_HOME to a directory "
                "that can be written"
            ) from error
    return directory


def _is_complete(directory: Path, files: list[Path]) -> bool:
    """Whether every file is there, and no link is dead."""
    return all((directory / "python" / file.name).exists() for file in files)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Only one process at a time is in here, for the same folder.

    Raises:
        OSError: Another has been for longer than such work takes.
    """
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    strerror = f"another process has held its lock for {LOCK_TIMEOUT_S:g} s"
                    raise OSError(error.errno, strerror) from None
                time.sleep(LOCK_POLL_S)
        yield
    finally:
        os.close(descriptor)  # and the lock with it


def _link_together(files: list[Path], directory: Path) -> None:
    """Make ``directory``/python in one step: who looks without the lock sees all or nothing."""
    fresh = Path(tempfile.mkdtemp(prefix="new-", dir=directory.parent))
    (fresh / "python").mkdir()
    for file in files:
        (fresh / "python" / file.name).symlink_to(file)
    if directory.exists():  # incomplete: the environment was remade
        directory.rename(f"{fresh}.old")
        shutil.rmtree(f"{fresh}.old")
    fresh.rename(directory)


def _cache_directory() -> Path:
    cache_home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache_home).expanduser() / "bertron"
