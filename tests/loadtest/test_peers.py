import pytest
from bertron_loadtest.peers import CELLS, Contender, Results, demo_checkpoint, tables

OURS, PEER = "Bertron float32", "infinity-emb float32"
CONTENDERS = [
    Contender(OURS, "float32", "grpc", None),
    Contender("Bertron int8", "int8", "grpc", None),
    Contender(PEER, "float32", "infinity", None, is_peer=True),
]


def results(*, ratios, p99_ms=(50, 50, 100)):
    """Three rounds, of which the second was made on a busy machine."""
    made = Results()
    for cell in CELLS:
        for contender, ratio, p99 in zip(CONTENDERS, ratios, p99_ms, strict=True):
            for noise in (1.0, 0.5, 1.1):
                made.of(contender.name, cell, "texts_per_s").append(ratio * 40 * noise)
                made.of(contender.name, cell, "p50_ms").append(p99 / 2)
                made.of(contender.name, cell, "p99_ms").append(p99)
    return made


def test_the_fastest_of_ours_is_held_against_the_aims():
    table, is_reached = tables(CONTENDERS, results(ratios=(3, 5.5, 1)))
    assert is_reached
    assert f"| 32 x 1 | {OURS} | 120 (60 to 132) | 25.0 | 50.0 | 3.00 |" in table
    assert f"| 32 x 1 | {PEER} | 40 (20 to 44) | 50.0 | 100.0 | 1.00 |" in table
    assert (
        "| 32 x 1: >= 5 x texts/s, lower p50 and p99 | Bertron int8 | 5.50 x | 0.50 x | 0.50 x "
        "| reached |" in table
    )


@pytest.mark.parametrize(
    "found", [results(ratios=(3, 4.5, 1)), results(ratios=(6, 6, 1), p99_ms=(50, 101, 100))]
)
def test_too_slow_or_too_late_reaches_no_aim(found):
    table, is_reached = tables(CONTENDERS, found)
    assert not is_reached
    assert "| not reached |" in table


@pytest.mark.parametrize("who", range(3))
def test_a_cell_without_a_right_answer_is_a_row_all_the_same(who):
    rates = [3.0, 6.0, 1.0]
    rates[who] = float("nan")
    table, is_reached = tables(CONTENDERS, results(ratios=rates))
    assert f"| 32 x 1 | {CONTENDERS[who].name} | nan" in table
    assert is_reached == (who == 0)  # ours in int8 is there, and the peer to hold it against


def test_the_default_model_is_there():
    assert (demo_checkpoint() / "model.safetensors").is_file()
