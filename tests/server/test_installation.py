from __future__ import annotations

import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest
from bertron_server import installation
from bertron_server.errors import InstallationError
from bertron_server.installation import (
    PYTHON,
    Installation,
    find_installation,
    find_libpython,
    parse_version,
    prepare_backend_directory,
)

NAMES = {"libtriton_python.so", "triton_python_backend_utils.py", "triton_python_backend_stub"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bertron"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """The wheel's layout with empty files."""
    root = tmp_path / "site-packages" / "pytriton" / "tritonserver"
    stub = root / "python_backend_stubs" / PYTHON / "triton_python_backend_stub"
    backend = root / "backends" / "python"
    files = [stub, *(backend / name for name in NAMES - {stub.name}), root / "bin" / "tritonserver"]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return root


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_a_tritonserver_on_the_path_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = executable(tmp_path / "bin" / "tritonserver")
    (tmp_path / "TRITON_VERSION").write_text("2.70.0\n")
    monkeypatch.setenv("PATH", str(binary.parent))
    assert find_installation() == Installation(binary=binary, version=(2, 70))


def test_a_container_may_state_its_version_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = executable(tmp_path / "bin" / "tritonserver")
    monkeypatch.setenv("PATH", str(binary.parent))
    monkeypatch.setenv("TRITON_SERVER_VERSION", "2.65.1")
    assert find_installation().version == (2, 65)
    monkeypatch.delenv("TRITON_SERVER_VERSION")
    assert find_installation().version is None


def test_neither_path_nor_wheel_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(installation.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(InstallationError, match=r"pip install 'bertron\[server\]'"):
        find_installation()


@pytest.mark.integration
def test_the_wheel_is_found_without_importing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    found = find_installation()
    assert "pytriton" not in sys.modules
    assert found.binary.is_file()
    assert found.version == (2, 51)
    assert found.backend_directory is not None
    assert {path.name for path in (found.backend_directory / "python").iterdir()} >= NAMES
    assert all(directory.is_dir() for directory in found.library_directories)


def test_backend_files_lie_side_by_side(wheel: Path, cache: Path) -> None:
    directory = prepare_backend_directory(wheel, "0.7.0")
    assert {path.name for path in (directory / "python").iterdir()} == NAMES
    assert all((directory / "python" / name).exists() for name in NAMES)
    assert list(cache.iterdir()) == [directory]  # nothing half-made is left


def test_each_environment_has_a_backend_directory_of_its_own(
    wheel: Path, cache: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    wheel.parent.parent.rename(other)
    moved = other / "pytriton" / "tritonserver"
    first = prepare_backend_directory(moved, "0.7.0")
    moved.parent.parent.rename(wheel.parent.parent)
    assert prepare_backend_directory(wheel, "0.7.0") != first


def test_a_backend_directory_with_dead_links_is_made_anew(wheel: Path, cache: Path) -> None:
    directory = prepare_backend_directory(wheel, "0.7.0")
    (directory / "python" / "libtriton_python.so").unlink()
    assert prepare_backend_directory(wheel, "0.7.0") == directory
    assert (directory / "python" / "libtriton_python.so").exists()
    assert list(cache.iterdir()) == [directory]


def _prepare(root: Path, barrier: object, results: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    directory = prepare_backend_directory(root, "0.7.0")
    results.put(all((directory / "python" / name).exists() for name in NAMES))  # type: ignore[attr-defined]


def test_processes_that_start_at_once_all_find_it_complete(wheel: Path, cache: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(8), context.Queue()
    workers = [context.Process(target=_prepare, args=(wheel, barrier, results)) for _ in range(8)]
    for worker in workers:
        worker.start()
    assert [results.get(timeout=30) for _ in workers] == [True] * 8
    for worker in workers:
        worker.join(timeout=30)
        assert worker.exitcode == 0
    assert len(list(cache.iterdir())) == 1


def test_who_holds_the_lock_for_too_long_is_not_waited_for(
    wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installation, "LOCK_TIMEOUT_S", 0.1)
    cache.mkdir(parents=True)
    with (
        installation._locked(cache),
        pytest.raises(InstallationError, match=r"another process has held its lock for 0\.1 s"),
    ):
        prepare_backend_directory(wheel, "0.7.0")
    assert prepare_backend_directory(wheel, "0.7.0").is_dir()


def test_a_python_without_a_stub_is_named(wheel: Path, cache: Path) -> None:
    stubs = wheel / "python_backend_stubs"
    (stubs / PYTHON).rename(stubs / "2.7")
    with pytest.raises(InstallationError, match=rf"no Python backend for Python {PYTHON}.*2\.7"):
        prepare_backend_directory(wheel, "0.7.0")


def test_a_cache_that_cannot_be_written_is_named(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()  # a directory without permission would not stop root
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InstallationError, match="XDG_CACHE_HOME"):
        prepare_backend_directory(wheel, "0.7.0")


def test_a_missing_libpython_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_libpython().exists()
    monkeypatch.setattr(installation, "LIBPYTHON", "libpython-of-nowhere.so.1.0")
    with pytest.raises(InstallationError, match=f"apt-get install libpython{PYTHON}"):
        find_libpython()


@pytest.mark.parametrize(
    ("text", "version"),
    [("2.51.0", (2, 51)), ("2.70.0\n", (2, 70)), ("3.1dev", (3, 1)), ("", None), ("main", None)],
)
def test_versions_are_read(text: str, version: tuple[int, int] | None) -> None:
    assert parse_version(text) == version


def test_an_environment_that_the_stub_cannot_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", "/home/jürgen/.venv")
    with pytest.raises(InstallationError, match=r"finds nothing in /home/jürgen/\.venv: install"):
        find_installation()


def test_the_makefile_looks_at_the_path_of_the_checkout(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "scripts" / "check_machine.py"
    copy = tmp_path / "ü" / "scripts" / script.name
    copy.parent.mkdir(parents=True)
    copy.write_bytes(script.read_bytes())
    lacking = subprocess.run([sys.executable, copy], capture_output=True, text=True, timeout=30)
    assert lacking.returncode == 1
    assert f"a place whose path is ASCII: {tmp_path}/ü cannot hold" in lacking.stderr
