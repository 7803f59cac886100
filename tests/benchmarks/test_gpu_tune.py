"""Which tile is chosen, and what is to be pasted."""

import gpu_kernels
import gpu_tune
import torch
from bertron_kernels.gemm import PARTIALS, GemmTile
from gpu_kernels import OURS
from gpu_report import Row
from gpu_tune import LIBRARY, Choice, ProductTrial, Trial

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


def products_of(tokens) -> list[ProductTrial]:
    return list(gpu_tune.product_trials(tokens, gpu_kernels.SIZES, 90, CPU))


def test_every_product_of_a_layer_is_tried_with_every_tile_that_it_can_have():
    trials = products_of(128)
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
    for tokens, is_split in ((256, True), (512, False)):
        tiles = gpu_tune.tiles_for("linear_add_layer_norm", tokens)
        assert any(tile.splits > 1 for tile in tiles) == is_split
        assert any(tile.bulk for tile in tiles)


def noted(trial, found, **times_ms):
    """The line and both tables after times of the present choice, PyTorch's and two of ours."""
    first, second = list(trial.tiles)[:2]
    names = {"present": OURS, "library": LIBRARY, "first": first, "second": second}
    rows_of_it = [
        Row("tune", trial.case.op, trial.case.shape, "float16", names[name], times_ms=[ms])
        for name, ms in times_ms.items()
    ]
    ours = {}
    return trial.note(rows_of_it, found, ours), found, ours


def test_the_quickest_tile_of_ours_is_found():
    trial = products_of(128)[3]
    first, second = list(trial.tiles.values())[:2]
    times = {"present": 2.0, "library": 2.0, "first": 1.5, "second": 1.0}
    assert noted(trial, {}, **times) == ("", {trial.key: second}, {trial.key: second})
    line = trial.entry(repr(second))
    assert eval("{" + line + "}", {"GemmTile": GemmTile}) == {trial.key: second}  # noqa: S307
    assert trial.key == (PARTIALS, 90, 768, 3072, 128)
    stays = noted(trial, {trial.key: first}, present=1.5, library=2.0, first=1.5, second=1.49)
    assert stays == ("", {trial.key: first}, {trial.key: second})


def test_where_pytorchs_product_is_quicker_ours_is_kept_for_a_whole_chain():
    trial = products_of(128)[0]
    first = next(iter(trial.tiles.values()))
    line, found, ours = noted(trial, {trial.key: first}, present=2.0, library=1.0, first=1.25)
    assert found == {}
    assert ours == {trial.key: first}
    assert line == (f"# for a whole chain: {trial.entry(repr(first))}  # 0.80 x PyTorch's product")


def test_a_product_without_a_tile_that_is_right_changes_nothing():
    trial = products_of(128)[0]
    assert noted(trial, {}, present=2.0, library=2.0) == ("", {}, {})


def test_what_goes_row_by_row_is_tried_with_every_tile():
    trials = list(gpu_tune.row_trials(CPU))
    assert {trial.case.op for trial in trials} == {"add_layer_norm", "bias_gelu", "pool"}
    norm = next(trial for trial in trials if trial.case.op == "add_layer_norm")
    assert list(norm.case.peers) == [repr(tile) for tile in gpu_tune.layer_norm.CANDIDATES]
    assert norm.entry("RowTile(1024, 1)") == "TILE = RowTile(1024, 1)"
