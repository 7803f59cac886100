import pytest
from bertron_loadtest.samples import Outcome, Sample, Samples, read_samples, write_samples

LATE = Sample(100.0, 0.001, 3.0, "grpc", 2, 30, Outcome.RIGHT, "")
EARLY = Sample(101.0, 0.0, 0.5, "http", 1, 0, Outcome.FAILED, 'ServerError: "quoted", and\nmore')


def test_samples_are_columns_in_the_order_of_their_ends():
    samples = Samples([LATE, EARLY])
    assert samples.end_s.tolist() == [101.5, 103.0]
    assert samples.caller.tolist() == ["http", "grpc"]
    assert samples.tokens.tolist() == [0, 30]
    assert list(samples) == [EARLY, LATE]


def test_none_at_all():
    assert len(Samples([])) == 0
    assert Samples([]).end_s.tolist() == []


def test_they_are_kept_in_a_file(tmp_path):
    path = tmp_path / "samples.csv"
    write_samples(path, [LATE, EARLY])
    assert read_samples(path) == [LATE, EARLY]


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "samples.csv"
    path.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="has not the columns due_s, lag_s"):
        read_samples(path)
