"""The tokenizer's door: what is refused, what is counted, and until when an answer is wanted."""

import types

import pytest
from bertron_backend import admission
from bertron_backend.admission import Admission
from bertron_backend.cost_model import CostModel
from bertron_backend.encoder_queue import QueueEntrance, QueueExit, Ticket
from bertron_backend.errors import OverloadedError

NOW_US = 10**12


@pytest.fixture(autouse=True)
def now(monkeypatch):
    monkeypatch.setattr(admission, "monotonic_us", lambda: NOW_US)


@pytest.fixture
def entrance(tmp_path):
    entrance = QueueEntrance(tmp_path / "queues", lambda: NOW_US)
    yield entrance
    entrance.close()


@pytest.fixture
def busy_encoder(tmp_path, entrance):
    """One that has a second of work before it."""
    encoder = QueueExit(CostModel(0, 0.1, 0), tmp_path / "queues", lambda: NOW_US)
    encoder.begin()
    encoder.see(entrance.join(10_000, 0), size=10_000, is_late=False)
    yield
    encoder.close()


def age_of(waited_us):
    return types.SimpleNamespace(us=waited_us)


def test_what_is_admitted_gets_its_place_once_its_tokens_are_known(entrance):
    admit = Admission(entrance, None).admit
    first, second = (admit(1000 * n, is_for_encoder=True) for n in (1, 2))
    assert second.ticket(5) == Ticket(NOW_US + 2000, entrance.queue, 0, 5)
    assert first.ticket(7) == Ticket(NOW_US + 1000, entrance.queue, 5, 12)


def test_what_waited_for_the_tokenizer_is_over(entrance):
    admitted = Admission(entrance, age_of(400)).admit(1000, is_for_encoder=True)
    assert admitted.deadline_us == NOW_US + 600
    with pytest.raises(OverloadedError, match=r"requests waited 0\.60 s for the tokenizer"):
        Admission(entrance, age_of(600_000)).admit(1_000_000, is_for_encoder=True)


@pytest.mark.usefixtures("busy_encoder")
def test_those_who_do_not_go_on_are_neither_refused_nor_counted(entrance):
    door = Admission(entrance, None)
    with pytest.raises(OverloadedError, match="10000 tokens wait for the encoder"):
        door.admit(1_000_000, is_for_encoder=True)
    assert door.admit(1_000_000, is_for_encoder=False).ticket(7) == Ticket(NOW_US + 1_000_000)
    assert entrance.join(1, 0).begin == 10_000


def test_without_a_page_all_may_pass():
    door = Admission(None, age_of(10**9))
    assert door.admit(1000, is_for_encoder=True).ticket(7) == Ticket(NOW_US + 1000 - 10**9)
    door = Admission(None, None)
    with door.working():
        pass
    door.close()


def test_a_closed_door_leaves_no_page_and_no_watch(tmp_path):
    directory = tmp_path / "others"
    stopped = []
    age = types.SimpleNamespace(us=0, stop=lambda: stopped.append(True))
    Admission(QueueEntrance(directory), age).close()
    assert stopped == [True]
    assert list(directory.iterdir()) == []
