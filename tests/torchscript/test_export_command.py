"""What `bertron export` says when it is done."""

import argparse

import pytest
from bertron_kernels import native
from bertron_torchscript import export_command
from tiny_checkpoints import make_checkpoint


@pytest.mark.parametrize(
    ("dtype", "has_fast_bf16", "is_said"),
    [("float32", True, True), ("float32", False, False), ("bfloat16", True, False)],
)
def test_a_quicker_dtype_is_named_where_the_cpu_has_one(
    tmp_path, monkeypatch, capsys, dtype, has_fast_bf16, is_said
):
    monkeypatch.setattr(native, "HAS_FAST_BF16", has_fast_bf16)
    source = make_checkpoint(tmp_path / "tiny", "bert")
    parser = argparse.ArgumentParser()
    export_command.add_arguments(parser)
    repository = tmp_path / "models"
    args = parser.parse_args([str(source), "--model-repository", str(repository), "--dtype", dtype])
    assert export_command.run(args) == 0
    said = capsys.readouterr().err
    assert f", {dtype}, " in said
    assert ("--dtype bfloat16 or int8" in said) is is_said
