"""What waits for the encoder: known at the entrance, right after whatever happens to processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from bertron_backend import encoder_queue
from bertron_backend.cost_model import CostModel
from bertron_backend.encoder_queue import (
    FULL_BATCH_TOKENS,
    IDLE_AFTER_US,
    NEXT_WITHIN_US,
    QueueEntrance,
    QueueExit,
    Ticket,
    may_wait_us,
)
from bertron_backend.errors import OverloadedError
from bertron_backend.queue_page import PAGE_BYTES, Page, default_directory, path_of
from bertron_backend.shared_files import open_in_use

DEADLINE_S = 60
# 0.1 ms a token, and nothing else
COST = CostModel(fixed_ms=0, token_ms=0.1, pair_ms=0)
TOKEN_US = 100


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


class Clock:
    """Time passes when it is told to."""

    def __init__(self):
        self.now_us = 10**12

    def __call__(self):
        return self.now_us


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "queues"


@pytest.fixture
def entrance(directory, clock):
    entrance = QueueEntrance(directory, clock)
    yield entrance
    entrance.close()


@pytest.fixture
def make_exit(directory, clock):
    made = []

    def make(cost=COST):
        made.append(QueueExit(cost, directory, clock))
        return made[-1]

    yield make
    for encoder in made:
        encoder.close()


def compute(encoder, clock, tickets, took_us=None, *, is_late=False):
    """One batch, by the cost model unless it is said how long it takes."""
    tokens = sum(ticket.end - ticket.begin for ticket in tickets)
    encoder.begin()
    for ticket in tickets:
        encoder.see(ticket, size=2**62, is_late=is_late)
    clock.now_us += tokens * TOKEN_US if took_us is None else took_us
    encoder.end()


def is_admitted(entrance, may_take_us):
    try:
        entrance.admit(may_take_us)
    except OverloadedError:
        return False
    return True


def waiting_us(entrance):
    """The estimate, from what is admitted and what is not."""
    low, high = 0, 2**40
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_admitted(entrance, middle) else (middle, high)
    return round(may_wait_us(high)) if low else 0


def test_before_the_encoder_took_anything_all_are_admitted(entrance):
    entrance.join(10**9, 0)
    entrance.admit(1)


@pytest.mark.parametrize(
    ("may_take_s", "expected_s"),
    [(30, 24), (6, 4.8), (5, 4), (4, 3), (2, 1), (1, 0.5), (0.1, 0.05), (0, 0)],
)
def test_of_its_time_a_request_may_wait_for_a_part(may_take_s, expected_s):
    assert may_wait_us(round(may_take_s * 1e6)) == pytest.approx(expected_s * 1e6)


def test_what_would_wait_too_long_is_refused(entrance, make_exit, clock):
    encoder = make_exit()
    encoder.begin()
    encoder.see(entrance.join(100, 0), size=2**62, is_late=False)
    for _ in range(99):
        entrance.join(100, 0)
    entrance.admit(2 * 10_000 * TOKEN_US)
    with pytest.raises(OverloadedError) as refused:
        entrance.admit(2 * 10_000 * TOKEN_US - 2)
    assert str(refused.value) == (
        "the server is overloaded: 10000 tokens wait for the encoder, 1.00 s of work; "
        "a request that may take 2.00 s can wait for 1.00 s"
    )


def test_what_waited_for_the_tokenizer_counts_too(entrance, make_exit, clock):
    entrance.admit(2_000_000, waited_us=1_000_000)
    with pytest.raises(OverloadedError, match=r"requests waited 1\.00 s for the tokenizer, 0 tok"):
        entrance.admit(1_999_998, waited_us=1_000_000)
    encoder = make_exit()
    encoder.begin()
    encoder.see(entrance.join(5000, 0), size=2**62, is_late=False)
    entrance.admit(2_000_000, waited_us=500_000)
    with pytest.raises(OverloadedError, match=r"waited 0\.50 s for the tokenizer, 5000 tokens"):
        entrance.admit(1_999_998, waited_us=500_000)


def test_what_is_computed_waits_no_more(entrance, make_exit, clock):
    encoder = make_exit()
    tickets = [entrance.join(100, 0) for _ in range(10)]
    for done in range(0, 10, 2):
        compute(encoder, clock, tickets[done : done + 2])
        assert waiting_us(entrance) == pytest.approx((8 - done) * 100 * TOKEN_US, abs=1)


def test_tickets_follow_one_another(entrance):
    first, second = entrance.join(7, 11), entrance.join(5, 13)
    assert first == Ticket(11, entrance.queue, 0, 7)
    assert second == Ticket(13, entrance.queue, 7, 12)


def test_what_was_cancelled_on_its_way_is_left_behind(entrance, make_exit, clock):
    encoder = make_exit()
    compute(encoder, clock, [entrance.join(100, 0)])
    entrance.join(10**7, 0)  # the encoder never sees it
    assert not is_admitted(entrance, 10**6)
    clock.now_us += IDLE_AFTER_US + 1
    assert waiting_us(entrance) == 0  # an encoder with nothing to do has nothing before it
    after = entrance.join(100, 0)
    encoder.begin()
    encoder.see(after, size=2**62, is_late=False)
    entrance.join(100, 0)
    assert waiting_us(entrance) == pytest.approx(
        200 * TOKEN_US, abs=1
    )  # and has passed it with the next one


def test_a_request_that_is_late_is_gone_and_says_nothing_of_speed(entrance, make_exit, clock):
    encoder = make_exit()
    compute(encoder, clock, [entrance.join(5000, 0)], took_us=10, is_late=True)
    entrance.join(1000, 0)
    assert waiting_us(entrance) == pytest.approx(1000 * TOKEN_US, abs=1)


@pytest.mark.parametrize("slowness", [0.25, 3])
def test_the_speed_is_that_of_the_last_batches(entrance, make_exit, clock, slowness):
    encoder = make_exit()
    for _ in range(12):
        clock.now_us += NEXT_WITHIN_US  # nothing waited
        ticket = entrance.join(FULL_BATCH_TOKENS, 0)
        took_us = round(slowness * FULL_BATCH_TOKENS * TOKEN_US)
        compute(encoder, clock, [ticket], took_us)
    entrance.join(1000, 0)
    assert waiting_us(entrance) == pytest.approx(1000 * slowness * TOKEN_US, rel=0.03)


def test_a_small_batch_says_what_a_large_one_would_take(entrance, make_exit, clock):
    cost = CostModel(fixed_ms=10.24, token_ms=0.1, pair_ms=0)
    encoder = make_exit(cost)
    for _ in range(50):
        clock.now_us += NEXT_WITHIN_US
        compute(encoder, clock, [entrance.join(1, 0)], took_us=10_340)
    entrance.join(FULL_BATCH_TOKENS, 0)
    assert waiting_us(entrance) == pytest.approx(FULL_BATCH_TOKENS * 110, rel=0.01)


def test_time_between_batches_counts_where_the_next_one_waited(entrance, make_exit, clock):
    encoder = make_exit()
    for _ in range(20):
        clock.now_us += NEXT_WITHIN_US - 1
        compute(encoder, clock, [entrance.join(1000, 0)])
    entrance.join(1000, 0)
    assert waiting_us(entrance) == pytest.approx(1000 * TOKEN_US + NEXT_WITHIN_US, rel=0.01)


def test_encoders_side_by_side_share_what_waits(entrance, make_exit, clock):
    one, two = make_exit(), make_exit(CostModel(fixed_ms=0, token_ms=0.3, pair_ms=0))
    for encoder in (one, two):
        encoder.begin()
        encoder.see(entrance.join(100, 0), size=2**62, is_late=False)
    entrance.join(3800, 0)
    clock.now_us += 100 * TOKEN_US
    one.end()  # 100 tokens are done, and those of the other one are not looked for
    assert waiting_us(entrance) == pytest.approx(3900 * TOKEN_US * 3 / 4, rel=0.01)


def test_each_tokenizer_sees_how_fast_its_own_queue_moves(directory, entrance, make_exit, clock):
    other = QueueEntrance(directory, clock)
    encoder = make_exit()
    for _ in range(20):
        clock.now_us += NEXT_WITHIN_US
        compute(encoder, clock, [entrance.join(900, 0), other.join(300, 0)])
    entrance.join(1000, 0)
    other.join(1000, 0)
    assert waiting_us(entrance) == pytest.approx(1000 * TOKEN_US * 4 / 3, rel=0.03)
    assert waiting_us(other) == pytest.approx(1000 * TOKEN_US * 4, rel=0.1)
    other.close()


OTHER_ENCODER = """
import sys
from pathlib import Path
from bertron_backend.cost_model import CostModel
from bertron_backend.encoder_queue import QueueExit, Ticket
encoder = QueueExit(CostModel(0, 0.1, 0), Path(sys.argv[1]))
encoder.begin()
encoder.see(Ticket(0, int(sys.argv[2]), 0, 100), size=2**62, is_late=False)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("death", [signal.SIGKILL, None])
def test_an_encoder_that_is_gone_holds_up_nobody(directory, entrance, death):
    command = [sys.executable, "-c", OTHER_ENCODER, str(directory), str(entrance.queue)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            entrance.join(10**6, 0)
            assert not is_admitted(entrance, 1000)
            if death is None:  # its model is unloaded, and its process ends
                process.stdin.close()
            else:
                process.send_signal(death)
            process.wait(DEADLINE_S)
        finally:
            process.kill()
    entrance.admit(1000)
    assert waiting_us(entrance) == 0


def test_what_waited_for_the_tokenizer_counts_beside_an_encoder_that_is_gone(directory, entrance):
    command = [sys.executable, "-c", OTHER_ENCODER, str(directory), str(entrance.queue)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        process.kill()
        process.wait(DEADLINE_S)
    entrance.join(10**6, 0)
    with pytest.raises(OverloadedError, match="0 tokens wait for the encoder"):
        entrance.admit(1_000_000, waited_us=900_000)
    entrance.admit(1_000_000, waited_us=400_000)


def test_an_encoder_that_has_not_said_how_fast_it_is_refuses_nobody(directory, entrance, clock):
    page = Page(open_in_use(path_of(directory, entrance.queue), os.O_RDWR))
    line = page.claim()
    line.is_busy, line.changed_us = 1, clock.now_us
    assert line.ns_per_token == 0
    entrance.join(1000, 0)
    entrance.admit(1000)
    line.pid = 0
    page.close()


def test_an_encoder_that_leaves_frees_its_line(entrance, make_exit):
    for _ in range(100):  # more than a page has lines
        encoder = make_exit()
        encoder.begin()
        encoder.see(entrance.join(1, 0), size=2**62, is_late=False)
        assert not is_admitted(entrance, 1)
        encoder.close()
    entrance.admit(1)


def test_tickets_of_nobodys_queue_are_let_through(entrance, make_exit, directory, clock):
    encoder = make_exit()
    (directory / f"{12345:016x}").write_bytes(b"short")
    for queue in (0, -1, -(2**63), 2**63 - 1, 12345):
        compute(encoder, clock, [Ticket(0, queue, 0, 100)], took_us=1)
    assert (directory / f"{12345:016x}").read_bytes() == b"short"
    entrance.join(10**9, 0)
    entrance.admit(1)


NO_TOKENIZERS = {
    "never reached": (2**62, 2**62 + 1),
    "before the first": (-(2**62), -(2**62)),
    "passed long ago": (0, 0),
    "backwards": (900, 0),
    "beyond what was handed on": (900, 10**6),
    "more than the request has": (0, 2000),
}


@pytest.mark.parametrize("numbers", NO_TOKENIZERS.values(), ids=NO_TOKENIZERS)
def test_a_number_that_the_tokenizer_did_not_give_changes_nothing(
    entrance, make_exit, clock, numbers
):
    """Whoever calls the encoder directly can write anything on a ticket."""
    encoder = make_exit()
    compute(encoder, clock, [entrance.join(1000, 0)])
    entrance.join(1000, 0)
    for _ in range(20):
        encoder.begin()
        encoder.see(Ticket(0, entrance.queue, *numbers), size=100, is_late=False)
        encoder.end()
        assert waiting_us(entrance) == pytest.approx(1000 * TOKEN_US, rel=0.01)


def test_requests_that_overtake_each_other_are_each_counted(entrance, make_exit, clock):
    encoder = make_exit()
    first, second, _ = (entrance.join(100, 0) for _ in range(3))
    compute(encoder, clock, [second])
    assert waiting_us(entrance) == pytest.approx(100 * TOKEN_US, abs=1)
    compute(encoder, clock, [first])
    assert waiting_us(entrance) == pytest.approx(100 * TOKEN_US, abs=1)


def test_the_page_goes_with_the_entrance_and_a_killed_ones_with_the_next(directory):
    entrance = QueueEntrance(directory)
    (page,) = directory.iterdir()
    assert page.stat().st_size == PAGE_BYTES
    assert page.stat().st_mode & 0o777 == 0o600
    second = QueueEntrance(directory)
    assert len(list(directory.iterdir())) == 2  # the first one is in use
    entrance.close()
    second.close()
    assert list(directory.iterdir()) == []
    left = directory / f"{1:016x}"
    left.write_bytes(bytes(PAGE_BYTES))
    third = QueueEntrance(directory)
    assert not left.exists()
    third.close()


def test_an_encoder_lets_go_of_queues_that_are_closed(directory, make_exit, clock):
    encoder = make_exit()
    before = open_files()
    for _ in range(3 * encoder_queue.MOST_QUEUES):
        entrance = QueueEntrance(directory, clock)
        compute(encoder, clock, [entrance.join(1, 0)])
        entrance.join(1000, 0)
        assert not is_admitted(entrance, 1)
        entrance.close()
    assert open_files() < before + 10


def test_a_directory_that_others_may_enter_is_refused(directory):
    directory.mkdir(mode=0o755)
    directory.chmod(0o755)
    with pytest.raises(PermissionError, match="this user alone"):
        QueueEntrance(directory)


def test_the_default_directory_is_in_memory():
    assert default_directory().parent == Path("/dev/shm")  # noqa: S108
