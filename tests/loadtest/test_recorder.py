import time

from bertron_loadtest.recorder import Clock, Recorder, describe
from bertron_loadtest.samples import Sample


def sample(end_s, *, texts=1, error=""):
    return Sample(end_s - 0.5, 0.0, 0.5, "grpc", texts, 9, "failed" if error else "right", error)


def test_the_clock_is_the_time():
    assert abs(Clock().now() - time.time()) < 0.1


def test_what_a_worker_drains_its_master_has_once():
    worker, master = Recorder(), Recorder()
    worker.samples.append(sample(10))
    worker.sent, worker.not_sent = 3, 1
    master.merge(worker.drain())
    worker.samples.append(sample(11, error="ServerError"))
    worker.sent += 1
    master.merge(worker.drain())
    master.merge(worker.drain())
    assert master.samples == [sample(10), sample(11, error="ServerError")]
    assert (master.sent, master.not_sent, master.problem) == (4, 1, "")
    worker.problem = "no server"
    master.merge(worker.drain())
    assert master.problem == "no server"


def test_the_rate_counts_right_texts_that_ended_in_the_time():
    recorder = Recorder()
    recorder.samples = [
        *(sample(9.9), sample(10, texts=8), sample(12, texts=2)),
        *(sample(11, texts=4), sample(12.5, error="no"), sample(14, texts=32)),
    ]
    assert recorder.texts_per_s(10, 14) == 14 / 4


def test_an_error_is_a_short_line():
    assert describe(ValueError("one\n two ")) == "ValueError: one two"
    assert describe(KeyError()) == "KeyError"
    assert len(describe(ValueError("x" * 1000))) < 250
