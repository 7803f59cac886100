"""How many threads are of use: no more than may run at a time."""

import os

import pytest
from bertron_backend.cores import usable_cores


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(8)))


def cores_of(tmp_path, files, own="0::/\n"):
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "own").write_text(own)
    return usable_cores(tmp_path / "cgroup", tmp_path / "own")


@pytest.mark.parametrize(
    ("limit", "cores"),
    [
        ("400000 100000\n", 4),
        ("350000 100000\n", 4),  # three and a half at a time
        ("50000 100000\n", 1),
        ("max 100000\n", 8),
        ("6400000 100000\n", 8),
        ("", 8),
        ("many\n", 8),
        ("400000 0\n", 8),
    ],
)
def test_a_containers_limit_is_kept(tmp_path, limit, cores):
    assert cores_of(tmp_path, {"cpu.max": limit}) == cores


def test_the_narrowest_group_around_it_counts(tmp_path):
    files = {
        "a.slice/cpu.max": "300000 100000\n",
        "a.slice/b.service/cpu.max": "max 100000\n",
        "other/cpu.max": "100000 100000\n",
    }
    assert cores_of(tmp_path, files, own="1:cpu:/x\n0::/a.slice/b.service\n") == 3


@pytest.mark.parametrize(("quota", "cores"), [("200000", 2), ("-1", 8), ("0", 8)])
def test_version_1_has_the_same_in_two_files(tmp_path, quota, cores):
    files = {"cpu/cpu.cfs_quota_us": f"{quota}\n", "cpu/cpu.cfs_period_us": "100000\n"}
    assert cores_of(tmp_path, files, own="9:cpu,cpuacct:/docker/1\n") == cores


def test_without_groups_it_is_the_affinity(tmp_path):
    assert usable_cores(tmp_path / "none", tmp_path / "none") == 8
