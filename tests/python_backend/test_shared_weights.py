"""One copy of the weights for several instances: the same numbers, and nothing left behind."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from bertron_backend.shared_weights import SharedWeights, SharingError

DEADLINE_S = 60


def model_of(seed=0):
    """Parameters of every kind that a packed model has, none of whose sizes suits a page."""
    torch.manual_seed(seed)
    inner = torch.nn.Module()
    inner.matrix = torch.nn.Parameter(torch.randn(3, 5).to(torch.bfloat16), requires_grad=False)
    whole = torch.randint(-128, 128, (2, 7, 9), dtype=torch.int8)
    inner.panels = torch.nn.Parameter(whole, requires_grad=False)
    model = torch.nn.Sequential(torch.nn.LayerNorm(11), inner)
    model[0].weight.data.copy_(torch.randn(11))
    model[0].bias.data[0] = torch.nan
    return model


def values(model):
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters()}


def same(found, expected):
    return found.keys() == expected.keys() and all(
        found[name].dtype == tensor.dtype
        and torch.equal(torch.nan_to_num(found[name]), torch.nan_to_num(tensor))
        for name, tensor in expected.items()
    )


def mappings(path):
    lines = Path("/proc/self/maps").read_text().splitlines()
    return sum(line.split()[4] == str(path.stat().st_ino) for line in lines)


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "shared"


def test_models_of_the_same_weights_map_one_file_which_goes_with_the_last(directory):
    expected = values(model_of())
    first, second = model_of(), model_of()
    one, two = SharedWeights(first, directory), SharedWeights(second, directory)
    assert list(directory.iterdir()) == [one.path] == [two.path]
    assert one.path.stat().st_size == one.size == two.size
    assert mappings(one.path) == 2
    assert same(values(first), expected)
    assert same(values(second), expected)
    one.close()
    assert list(directory.iterdir()) == [two.path]
    two.close()
    assert list(directory.iterdir()) == []
    assert same(values(first), expected)
    assert same(values(second), expected)


def test_other_weights_have_a_file_of_their_own(directory):
    first, second = model_of(0), model_of(1)
    one, two = SharedWeights(first, directory), SharedWeights(second, directory)
    assert set(directory.iterdir()) == {one.path, two.path}
    assert one.path != two.path
    assert same(values(first), values(model_of(0)))
    assert same(values(second), values(model_of(1)))


def test_who_writes_to_a_parameter_writes_to_an_own_copy(directory):
    first, second = model_of(), model_of()
    SharedWeights(first, directory), SharedWeights(second, directory)
    with torch.no_grad():
        first[1].matrix.fill_(7)
    assert same(values(second), values(model_of()))


def test_what_a_killed_process_left_goes_at_the_next_start(directory):
    program = (
        "import sys, time; from pathlib import Path; from test_shared_weights import model_of;"
        "from bertron_backend.shared_weights import SharedWeights;"
        "kept = SharedWeights(model_of(5), Path(sys.argv[1])); print('ready', flush=True);"
        f"time.sleep({DEADLINE_S})"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    command = [sys.executable, "-c", program, str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as other:
        try:
            assert other.stdout.readline() == "ready\n"
            (left,) = directory.iterdir()
            mine = SharedWeights(model_of(0), directory)
            assert set(directory.iterdir()) == {left, mine.path}  # it is in use
        finally:
            other.send_signal(signal.SIGKILL)
    again = SharedWeights(model_of(1), directory)
    assert set(directory.iterdir()) == {mine.path, again.path}


def test_a_file_of_other_contents_is_not_used_but_removed(directory):
    shared = SharedWeights(model_of(), directory)
    shared.path.write_bytes(bytes(shared.size))
    model = model_of()
    with pytest.raises(SharingError, match=rf"{shared.path.name} did not hold these weights"):
        SharedWeights(model, directory)
    assert same(values(model), values(model_of()))
    again = SharedWeights(model, directory)
    assert again.path == shared.path
    assert same(values(model), values(model_of()))


def test_a_file_cut_short_is_not_used(directory):
    shared = SharedWeights(model_of(), directory)
    os.truncate(shared.path, 10)
    with pytest.raises(SharingError, match="greater than file size"):
        SharedWeights(model_of(), directory)


def test_a_directory_open_to_others_is_refused(directory):
    directory.mkdir()
    directory.chmod(0o755)
    with pytest.raises(SharingError, match=rf"{directory}: it is not a directory of this user"):
        SharedWeights(model_of(), directory)


def test_a_link_to_a_directory_is_refused(directory, tmp_path):
    (tmp_path / "own").mkdir(mode=0o700)
    directory.symlink_to(tmp_path / "own")
    with pytest.raises(SharingError, match="it is not a directory of this user"):
        SharedWeights(model_of(), directory)


def test_a_sweep_of_temporary_files_takes_nothing_from_who_has_them(directory):
    model = model_of()
    shared = SharedWeights(model, directory)
    shutil.rmtree(directory)
    assert same(values(model), values(model_of()))
    again = SharedWeights(model_of(), directory)
    assert list(directory.iterdir()) == [again.path]
    again.close()
    shutil.rmtree(directory)
    shared.close()
    assert same(values(model), values(model_of()))


def test_a_full_disk_leaves_the_model_as_it_is_and_no_file(directory, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    model = model_of()
    with pytest.raises(SharingError, match="No space left on device"):
        SharedWeights(model, directory)
    assert list(directory.iterdir()) == []
    assert same(values(model), values(model_of()))


def test_many_that_come_and_go_at_once_neither_fail_nor_leave_anything(directory):
    def come_and_go(number):
        model = model_of(number % 2)
        expected = values(model)
        try:
            shared = SharedWeights(model, directory)
        except SharingError as error:
            return str(error)
        time.sleep(0.001 * (number % 3))
        shared.close()
        assert same(values(model), expected)
        return None

    with ThreadPoolExecutor(8) as pool:
        errors = list(filter(None, pool.map(come_and_go, range(200), timeout=DEADLINE_S)))
    assert all("came and went" in error for error in errors)  # the one cause there may be
    assert len(errors) <= 10
    assert list(directory.iterdir()) == []
