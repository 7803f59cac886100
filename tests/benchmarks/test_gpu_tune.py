"""Which tile is chosen, and what is to be pasted."""

import gpu_kernels
import gpu_tune
import torch
from bertron_kernels.gemm import PARTIALS, GemmTile
from gpu_chains import Tables
from gpu_kernels import OURS
from gpu_report import Row
from gpu_tune import LIBRARY, Choice, Trial

CPU = torch.device("cpu")


def rows(**times_ms) -> list[Row]:
    names = {"ours": OURS, "product": LIBRARY}
    return [
        Row("tune", "op", "4 x 4", "float16", names.get(name, name), times_ms=[ms])
        for name, ms in times_ms.items()
    ]


def test_the_quickest_is_chosen():
    assert gpu_tune.choose(rows(ours=2.0, a=1.0, b=1.5)) == Choice("a", 2.0, changed=True)


def test_what_hardly_gains_changes_nothing():
    assert gpu_tune.choose(rows(ours=1.01, a=1.0)) == Choice(OURS, 1.0, changed=False)


def test_what_is_wrong_is_no_choice():
    ours, wrong = rows(ours=2.0, a=1.0)
    wrong.problem = "error 1e-1, gate 5e-4"
    assert gpu_tune.choose([ours, wrong]) == Choice(OURS, 1.0, changed=False)


def test_there_is_no_choice_without_a_time_of_the_present():
    assert gpu_tune.choose(rows(a=1.0)) is None


def trial() -> Trial:
    case = gpu_kernels.bias_gelu(4, 4, torch.float32, CPU)
    return Trial(case, lambda name: f"(2, 32): {name},")


def test_a_line_can_be_pasted_and_says_its_gain():
    line = gpu_tune.summary(trial(), rows(ours=3.0, a=1.5, product=6.0))
    assert line == (
        "(2, 32): a,  # bias_gelu, 4 x 4: 2.00 x the present choice, 4.00 x PyTorch's product"
    )
    assert eval("{" + line + "\n}", {"a": 7}) == {(2, 32): 7}  # noqa: S307


def test_lines_that_change_nothing_are_comments():
    assert gpu_tune.summary(trial(), rows(ours=1.0, a=1.0)).startswith("# bias_gelu, 4 x 4: stays")
    assert gpu_tune.summary(trial(), rows(ours=2.0, product=1.0)).startswith(
        "# bias_gelu, 4 x 4: no"
    )
    assert gpu_tune.summary(trial(), rows(a=1.0)).startswith("#")


def test_attention_is_tried_at_every_length_class_with_every_tile():
    trials = list(gpu_tune.attention_trials(64, CPU))
    assert [len(trial.case.peers) for trial in trials] == [
        len(tiles) for tiles in gpu_tune.ATTENTION_TILES.values()
    ]
    for trial, (length, tiles) in zip(trials, gpu_tune.ATTENTION_TILES.items(), strict=True):
        assert trial.entry(repr(tiles[0])) == f"(2, 64, {length}): {tiles[0]!r},"
        assert trial.case.shape.endswith(f" x {length}, 12 heads of 64")


def products_of(tokens, tables) -> list[Trial]:
    return list(gpu_tune.product_trials(tokens, 90, CPU, tables))


def test_every_product_of_a_layer_is_tried_with_every_tile_that_it_can_have():
    trials = products_of(128, Tables({}))
    assert [(trial.case.op, trial.case.shape) for trial in trials[:4]] == [
        ("linear", "128 x 768 to 2304"),
        ("linear_add_layer_norm", "128 x 768 to 768"),
        ("linear_gelu", "128 x 768 to 3072"),
        ("linear_add_layer_norm", "128 x 3072 to 768"),
    ]
    assert len(trials) == 4 * len(gpu_kernels.SIZES)
    for trial in trials:
        epilogue = gpu_tune.EPILOGUES[trial.case.op]
        able = [repr(tile) for tile in gpu_tune.GEMM_TILES if epilogue in tile.epilogues()]
        assert list(trial.case.peers) == [LIBRARY, *able]


def test_the_sums_of_many_tokens_stay_whole():
    assert {trial.case.op for trial in products_of(512, Tables({}))} == {"linear", "linear_gelu"}


def test_what_is_chosen_serves_the_rest_of_the_run():
    tables = Tables({})
    trial = products_of(128, tables)[3]
    tile = gpu_tune.tiles_for("linear_add_layer_norm", 128)[-1]
    trial.serve(repr(tile))
    key = (PARTIALS, 90, 768, 3072, 128)
    assert tables.products == {key: tile}
    assert eval("{" + trial.entry(repr(tile)) + "}", vars(gpu_tune) | {"GemmTile": GemmTile}) == {  # noqa: S307
        key: tile
    }
    trial.serve(LIBRARY)
    assert tables.products == {}


def test_what_goes_row_by_row_is_tried_with_every_tile():
    trials = list(gpu_tune.row_trials(CPU))
    assert {trial.case.op for trial in trials} == {"add_layer_norm", "bias_gelu", "pool"}
    norm = next(trial for trial in trials if trial.case.op == "add_layer_norm")
    assert list(norm.case.peers) == [repr(tile) for tile in gpu_tune.layer_norm.CANDIDATES]
    assert norm.entry("RowTile(1024, 1)") == "TILE = RowTile(1024, 1)"
