"""Files that processes share: what nobody has in use goes, and nothing else."""

import fcntl

from bertron_backend.shared_files import open_in_use, remove_unused


def test_what_is_in_use_stays(tmp_path):
    used, unused = tmp_path / "used", tmp_path / "unused"
    for path in (used, unused):
        path.touch()
    descriptor = open_in_use(used)
    assert descriptor is not None
    remove_unused(tmp_path)
    assert used.exists()
    assert not unused.exists()


def test_a_new_file_of_an_old_ones_name_stays(tmp_path, monkeypatch):
    """Another sweeper was quicker, and a third process has made the file anew since."""
    path = tmp_path / "digest"
    path.write_text("left by a killed process")
    flock = fcntl.flock

    def replaced_meanwhile(descriptor, operation):
        path.unlink()
        path.write_text("in use")
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", replaced_meanwhile)
    remove_unused(tmp_path)
    assert path.read_text() == "in use"
