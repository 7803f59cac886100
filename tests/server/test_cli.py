from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from bertron_server import cli
from bertron_server.errors import TritonServerError


def command_that(monkeypatch: pytest.MonkeyPatch, error: BaseException | None = None) -> None:
    """Make `bertron serve` raise, or return 3."""

    def run(args: object) -> int:
        if error is not None:
            raise error
        return 3

    module = SimpleNamespace(add_arguments=lambda _parser: None, run=run)
    monkeypatch.setattr(cli.importlib, "import_module", lambda _name: module)


def test_the_exit_code_is_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    command_that(monkeypatch)
    assert cli.main(["serve"]) == 3


def test_ctrl_c_ends_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command_that(monkeypatch, KeyboardInterrupt())
    assert cli.main(["serve"]) == 130
    assert capsys.readouterr().err == ""


def test_a_failure_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command_that(monkeypatch, TritonServerError("the port is taken"))
    assert cli.main(["serve"]) == 1
    assert capsys.readouterr().err == "bertron serve: the port is taken\n"


def test_a_missing_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command_that(monkeypatch, ModuleNotFoundError("No module named 'torch'", name="torch"))
    assert cli.main(["export"]) == 1
    message = capsys.readouterr().err
    assert message == (
        "bertron export: it needs the package torch; run `pip install 'bertron[export]'`\n"
    )


def test_a_command_that_is_not_installed_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = cli.Command("bertron_server.no_such_module", "x", "server")
    monkeypatch.setitem(cli.COMMANDS, "export", missing)
    assert cli.main(["export"]) == 1
    assert "no such command" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve", "--help"])
    assert ended.value.code == 0


@pytest.mark.parametrize("argv", [["nope"], ["serve", "--http-port", "many"], ["--nope"]])
def test_a_wrong_call_is_a_usage_error(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    assert ended.value.code == 2


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    shown = capsys.readouterr().out
    assert all(name in shown for name in cli.COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"bertron {importlib.metadata.version('bertron')}\n"


@pytest.mark.parametrize("command", ["serve", "health"])
def test_a_commands_help_imports_nothing_heavy(command: str) -> None:
    script = (
        "import sys\n"
        "from bertron_server.cli import main\n"
        "try:\n"
        f"    main(['{command}', '--help'])\n"
        "except SystemExit:\n"
        "    pass\n"
        "print(sorted({'torch', 'numpy', 'tritonclient', 'transformers'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", ">&- 2>&- <&-"])
def test_a_failure_that_nobody_reads_is_one_all_the_same(
    bertron_to: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, redirection: str
) -> None:
    done = bertron_to(redirection, "serve", "--model-repository", tmp_path / "nowhere")
    assert done.returncode == cli.EXIT_FAILURE


def test_no_file_takes_the_place_of_a_closed_stream() -> None:
    """In a process of its own: a shell closes all three, and the program says what they are."""
    program = (
        "import os; from bertron_server.cli import main; main([]); "
        "os.write(3, ascii([os.readlink(f'/proc/self/fd/{n}') for n in range(3)]).encode())"
    )
    shell = ["sh", "-c", 'exec 3>&1 >&- 2>&- <&-; exec "$@"', "sh"]
    done = subprocess.run(
        [*shell, sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == str(["/dev/null"] * 3)
