"""More than the server can bear: it goes on working, and says at once what it will not do."""

import dataclasses
import os
import shutil

import numpy as np
import pytest
from bertron_loadtest.figures import figures_of
from bertron_loadtest.load import LoadSettings, ServerPlace, run_load
from bertron_loadtest.samples import Outcome
from bertron_loadtest.suite import capacity_of
from bertron_server.server import TritonServer
from bertron_torchscript.export import export
from real_server import MODEL_REPOSITORY
from tiny_checkpoints import make_checkpoint


@pytest.fixture
def impatient(tmp_path):
    """A server that refuses what has waited for a second."""
    repository = tmp_path / "models"
    shutil.copytree(MODEL_REPOSITORY, repository, copy_function=os.symlink)
    config = repository / "tokenizer" / "config.pbtxt"
    text = config.read_text("utf-8")
    config.unlink()
    changed = text.replace('string_value: "30000000"', 'string_value: "1000000"')
    assert changed != text
    config.write_text(changed, "utf-8")
    with TritonServer(repository) as server:
        yield ServerPlace(
            {"grpc": server.grpc_url, "http": server.http_url}, server.metrics_url, server.pid
        )


@pytest.mark.slow
@pytest.mark.parametrize("caller", ["grpc", "http"])
def test_overload_loses_nothing(impatient, caller, tmp_path):
    """Three times of what the server can: each call is answered rightly, or refused."""
    ramp = LoadSettings(callers=(caller,), shape="ramp", users=16, seconds=5, warm_up_s=1)
    capacity = capacity_of(run_load(ramp, impatient, tmp_path / "ramp"))
    flood = LoadSettings(
        callers=(caller,), loop="open", rate=3 * capacity, users=1, seconds=6, warm_up_s=0
    )
    run = run_load(flood, impatient, tmp_path / "flood")
    found = figures_of(run, None)
    assert run.not_sent == 0
    assert run.sent == found["right"] + found["refused"], found
    assert found["refused"] > 0.2 * run.sent
    # It goes on working meanwhile, though most of what it works at is refused.
    assert found["right"] > 0.3 * capacity * 6
    assert np.max(run.samples.latency_s) < 10


def flooded(repository, load, *, times, seconds, folder):
    """Capacity in calls/s, and the run at so many times of it by clients that wait two seconds."""
    with TritonServer(repository) as server:
        place = ServerPlace(
            {"grpc": server.grpc_url, "http": server.http_url}, server.metrics_url, server.pid
        )
        ramp = dataclasses.replace(load, shape="ramp", users=8, seconds=6, warm_up_s=1)
        capacity = capacity_of(run_load(ramp, place, folder / "ramp"))
        flood = dataclasses.replace(
            load,
            loop="open",
            rate=times * capacity,
            users=1,
            seconds=seconds,
            warm_up_s=0,
            timeout_s=2,
        )
        run = run_load(flood, place, folder / "flood")
        assert server.is_alive()
    return capacity, run


@pytest.mark.slow
@pytest.mark.parametrize("caller", ["grpc", "http"])
def test_ten_times_too_much_from_clients_that_wait_two_seconds(caller, tmp_path):
    """A queue would make every answer come too late; what does not fit is refused at once."""
    seconds = 10
    load = LoadSettings(callers=(caller,), texts_a_call=(32,))
    capacity, run = flooded(MODEL_REPOSITORY, load, times=10, seconds=seconds, folder=tmp_path)
    found = figures_of(run, None)
    assert run.not_sent == 0
    assert run.sent == found["right"] + found["refused"], found
    assert found["right"] > 0.7 * capacity * seconds, (capacity, found)
    was_refused = run.samples.outcome == Outcome.REFUSED
    assert np.median(run.samples.latency_s[was_refused]) < 0.2


@pytest.mark.slow
def test_a_tokenizer_that_cannot_follow_its_encoder(tmp_path):
    """As before a GPU: what waits too long for the tokenizer is refused by it.

    Documents, of which a tiny encoder sees eight tokens each.
    """
    seconds = 10
    checkpoint, repository = make_checkpoint(tmp_path / "tiny"), tmp_path / "models"
    export(str(checkpoint), repository, dtype="float32", max_tokens=8)
    load = LoadSettings(callers=("http",), workload="documents", texts_a_call=(32,))
    capacity, run = flooded(repository, load, times=3, seconds=seconds, folder=tmp_path)
    found = figures_of(run, None)
    assert run.sent == found["right"] + found["refused"] + found["unanswered"], found
    assert found["right"] > 0.4 * capacity * seconds, (capacity, found)
    waited = [error for error in run.samples.error if "for the tokenizer" in error]
    assert len(waited) > 0.2 * run.sent
