from __future__ import annotations

import mmap
from pathlib import Path

import pytest
from bertron_server import shared_memory


@pytest.fixture
def region(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A region; elsewhere than in /dev/shm, where servers of others may run meanwhile."""
    monkeypatch.setattr(shared_memory, "DIRECTORY", tmp_path)
    path = tmp_path / f"{shared_memory.new_prefix()}test"
    path.write_bytes(b"\0" * mmap.PAGESIZE)
    return path


@pytest.fixture
def _all_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "SETTLED_AFTER_S", -1.0)


@pytest.mark.usefixtures("_all_settled")
def test_a_region_that_nobody_maps_is_removed(region: Path) -> None:
    assert region.name in shared_memory.remove_stale_regions()
    assert not region.exists()


@pytest.mark.usefixtures("_all_settled")
def test_a_region_that_a_process_maps_stays(region: Path) -> None:
    with region.open("r+b") as file, mmap.mmap(file.fileno(), 0):
        assert region.name not in shared_memory.remove_stale_regions()
    assert region.exists()


def test_a_fresh_region_stays(region: Path) -> None:
    assert region.name not in shared_memory.remove_stale_regions()
    assert region.exists()


@pytest.mark.usefixtures("_all_settled")
def test_regions_of_other_programs_and_other_namespaces_stay(region: Path) -> None:
    others = [region.with_name("not_bertron_1"), region.with_name("bertron_1_0")]
    for other in others:
        other.touch()
    shared_memory.remove_stale_regions()
    assert all(other.exists() for other in others)


@pytest.mark.usefixtures("_all_settled")
@pytest.mark.parametrize(
    ("name", "stays"), [("tritonserver\n", True), ("triton_python_b\n", True), ("init\n", False)]
)
def test_nothing_is_removed_where_a_server_cannot_be_looked_into(
    region: Path, monkeypatch: pytest.MonkeyPatch, name: str, stays: bool
) -> None:
    def refuse_maps(path: Path, **_options: str) -> str:
        if path.name == "maps":
            raise PermissionError
        return name

    monkeypatch.setattr(Path, "read_text", refuse_maps)
    shared_memory.remove_stale_regions()
    assert region.exists() is stays


def test_a_stop_removes_its_own_regions_only(region: Path) -> None:
    mine = shared_memory.DIRECTORY / f"{shared_memory.new_prefix()}mine"
    mine.touch()
    shared_memory.remove_regions(mine.name.removesuffix("mine"))
    assert not mine.exists()
    assert region.exists()
