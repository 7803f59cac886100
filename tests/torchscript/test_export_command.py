"""What `bertron export` says when it is done, and what it leaves when it is not."""

import argparse
import signal
import subprocess
import sys

import pytest
from bertron_kernels import native
from bertron_torchscript import export, export_command
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


def test_the_tokenizer_is_the_users_choice_where_two_disagree(tmp_path, capsys):
    source = make_checkpoint(tmp_path / "tiny", "bert")
    (source / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    parser = argparse.ArgumentParser()
    export_command.add_arguments(parser)
    command = [str(source), "--model-repository", str(tmp_path / "models")]
    assert export_command.run(parser.parse_args(command)) == 1
    assert "--tokenizer transformers" in capsys.readouterr().err.splitlines()[-1]
    for choice in ("file", "transformers"):
        assert export_command.run(parser.parse_args([*command, "--tokenizer", choice])) == 0


# Runs the command, and ends itself as `kill` would in the middle of the export.
KILLED = """
import os, signal, sys
from bertron_server.cli import main
from bertron_torchscript import export as module

number = getattr(signal, sys.argv.pop())
module.verify_saved = lambda *_arguments: os.kill(os.getpid(), number)
sys.exit(main(sys.argv[1:]))
"""


def killed_export(source, repository, by):
    return subprocess.run(
        [
            *(sys.executable, "-c", KILLED),
            *("export", str(source), "--model-repository", str(repository), by),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    ).returncode


@pytest.mark.parametrize(("by", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_an_export_that_is_ended_leaves_nothing(tmp_path, by, code):
    source = make_checkpoint(tmp_path / "tiny", "bert")
    (tmp_path / "place").mkdir()
    assert killed_export(source, tmp_path / "place" / "models", by) == code
    assert list((tmp_path / "place").iterdir()) == []


def test_what_a_killed_export_leaves_is_no_model_and_goes_with_the_next(tmp_path, monkeypatch):
    source = make_checkpoint(tmp_path / "tiny", "bert")
    place = tmp_path / "place"
    place.mkdir()
    assert killed_export(source, place / "models", "SIGKILL") == -signal.SIGKILL
    assert list((place / "models").iterdir()) == []
    (left,) = [path.name for path in place.iterdir() if path.name != "models"]
    assert left.startswith(".bertron-export-")
    monkeypatch.setattr(export, "SWEPT_AFTER_S", 0)
    export.export(str(source), place / "models")
    assert [path.name for path in place.iterdir()] == ["models"]


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", ">&- 2>&- <&-"])
def test_an_export_that_nobody_reads_of_is_there(tmp_path, redirection):
    source = make_checkpoint(tmp_path / "tiny", "bert")
    command = (sys.executable, "-m", "bertron_server.cli", "export", source)
    repository = tmp_path / "models"
    shell = ("sh", "-c", f'exec "$@" {redirection}', "sh")
    done = subprocess.run([*shell, *command, "--model-repository", repository], timeout=120)
    assert done.returncode == 0
    assert (repository / "bert" / "1" / "manifest.json").is_file()


# As a full disk does, by a limit on the size of a file.
FULL_DISK = """
import resource, signal, sys
from bertron_server.cli import main

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
sys.exit(main(sys.argv[1:]))
"""


def test_a_disk_that_fills_up_is_one_line(tmp_path):
    source = make_checkpoint(tmp_path / "tiny", "bert")
    (tmp_path / "place").mkdir()
    done = subprocess.run(
        [
            *(sys.executable, "-c", FULL_DISK, "export", source),
            *("--model-repository", tmp_path / "place" / "models"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "model.pt cannot be written: " in done.stderr.splitlines()[-1]
    assert list((tmp_path / "place").iterdir()) == []
