"""Both load generators in turns, their table, and what is said of it."""

import argparse
import sys
from pathlib import Path

import pytest
from bertron_loadtest import cross_check
from bertron_loadtest.cross_check import Comparison, Measurement, compare, in_words, table
from bertron_loadtest.perf_analyzer import PerfAnalyzerResult
from fake_triton_server import FakeTritonServer


def measured(texts_per_s: float, outside_ms: float | None = 1.0) -> Measurement:
    return Measurement(texts_per_s, 1e3 / texts_per_s, 2e3 / texts_per_s, outside_ms)


def test_they_take_turns_and_neither_is_always_first():
    order = []

    def measure(name: str, texts_per_s: float):
        def one(url: str, concurrency: int) -> Measurement:
            order.append((name, url, concurrency))
            return measured(texts_per_s * concurrency)

        return one

    urls = ["grpc://127.0.0.1:1", "http://127.0.0.1:2"]
    found = compare(urls, [1, 8], 3, theirs=measure("pa", 100), ours=measure("we", 90))
    assert [(cell.scheme, cell.concurrency) for cell in found] == [
        *[("grpc", 1), ("grpc", 8), ("http", 1), ("http", 8)],
    ]
    assert found[1].theirs == [measured(800)] * 3
    assert found[1].ours == [measured(720)] * 3
    assert found[1].ratios == pytest.approx([0.9] * 3)
    turns = [order[at][0] for at in range(0, len(order), 2)]
    assert turns == ["pa"] * 4 + ["we"] * 4 + ["pa"] * 4
    assert all(order[at][1:] == order[at + 1][1:] for at in range(0, len(order), 2))


def test_the_table_has_medians_of_the_rounds():
    cell = Comparison(
        *("http", 8),
        [measured(100), measured(400), measured(200)],
        [measured(100, None), measured(200, None), measured(100, None)],
    )
    assert table([cell]).splitlines()[-1] == (
        "| http | 8 | 200.0 / 100.0 | 5.0 / 10.0 | 10.0 / 20.0 | 1.0 / unknown | 0.50 |"
    )


@pytest.mark.parametrize(
    ("theirs", "ours", "words", "others"),
    [
        ([(100, 1)] * 2, [(96, 5)] * 2, "they agree", "C++"),  # near
        ([(100, 1)] * 3, [(80, 5), (85, 5), (101, 5)], "rounds differ by more", "C++"),
        ([(100, 1)] * 2, [(80, 5)] * 2, "5.0 ms under ours, 1.0 ms under its: its client", "agree"),
        ([(100, 5)] * 2, [(80, 1)] * 2, "1.0 ms under ours, 5.0 ms under its.", "C++"),
        ([(100, 1)] * 2, [(120, 5)] * 2, "5.0 ms under ours, 1.0 ms under its.", "C++"),
        ([(100, 1)] * 2, [(80, None)] * 2, "0.80 x perf_analyzer's", "outside"),
    ],
)
def test_words_claim_no_more_than_was_measured(theirs, ours, words, others):
    cell = Comparison(
        "grpc", 8, [measured(*one) for one in theirs], [measured(*one) for one in ours]
    )
    said = in_words(cell)
    assert words in said
    assert others not in said


@pytest.fixture
def stand_in(monkeypatch):
    """For perf_analyzer: it asks nothing, and always measures the same."""

    def run(program, url, model, texts, *, concurrency, seconds):
        assert (program, model) == (Path(sys.executable), "text_embedding")
        assert len(set(texts)) > 200
        return PerfAnalyzerResult(
            concurrency, 15.0, 133.0, 130.0, 140.0, 150.0, 160.0, 132.0, 2, 130
        )

    monkeypatch.setattr(cross_check, "run_perf_analyzer", run)


def main(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    cross_check.add_arguments(parser)
    return cross_check.main(parser.parse_args([str(argument) for argument in arguments]))


def load(url: str, *, seconds: float) -> int:
    return main(
        *("--perf-analyzer", sys.executable, "--url", url),
        *("--concurrency", "2", "--rounds", "1", "--seconds", seconds),
    )


def test_our_own_load_is_measured_beside_it(stand_in, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # where the runs are kept
    with FakeTritonServer() as server:
        server.behaviour.delay_s = 0.1
        assert load(server.grpc_url, seconds=3) == 0
    said = capsys.readouterr().out
    row = next(line for line in said.splitlines() if line.startswith("| grpc"))
    _, _, concurrency, texts_per_s, p50_ms, *_ = (cell.strip() for cell in row.split("|"))
    theirs, ours = (float(number) for number in texts_per_s.split(" / "))
    assert (concurrency, theirs) == ("2", 15.0)
    assert 14 < ours <= 20  # two at a time, each of 0.1 s
    assert 100 <= float(p50_ms.split(" / ")[1]) < 150
    assert "grpc, 2 at a time: ours counts" in said


def test_wrong_answers_have_no_speed(stand_in, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with FakeTritonServer() as server:
        server.behaviour.fault, server.behaviour.fault_share = "internal", 0.2
        with pytest.raises(ValueError, match="our own load"):
            load(server.grpc_url, seconds=2)


@pytest.mark.parametrize("arguments", [("--rounds", 0), ("--seconds", 0)])
def test_numbers_that_measure_nothing_are_refused(arguments):
    with pytest.raises(ValueError, match="positive numbers"):
        main("--perf-analyzer", sys.executable, *arguments)
