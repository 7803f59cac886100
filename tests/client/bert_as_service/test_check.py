"""The checker: what it finds in programs and scripts, what it says of it, and its exit code."""

import os
import subprocess
import sys
import textwrap

import pytest
from bertron_client.bert_as_service import check
from bertron_client.bert_as_service._check_program import check_program, check_text
from bertron_client.bert_as_service._check_rules import FLAG_ALIASES, FLAGS, Kind

IMPORT = "from bert_serving.client import BertClient\n"


def found(program):
    """(line, kind, what) of each finding."""
    findings = check_program(textwrap.dedent(program))
    return [(finding.line, finding.rule.kind.value, finding.what) for finding in findings]


def kinds_of(program):
    return {what: kind for _, kind, what in found(program)}


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("from bert_serving.client import BertClient", "import"),
        ("from bert_serving.client import ConcurrentBertClient as Pool", "import"),
        ("from bert_serving.client import *", "import"),
        ("from bert_serving import client", "import"),
        ("import bert_serving.client", "import"),
        ("import bert_serving.client as bsc", "import"),
        ("from bert_serving.server.graph import PoolingStrategy", "import"),
        ("from bert_serving.client import _Response", "change"),
        ("from bert_serving.server import BertServer", "change"),
        ("from bert_serving.server.helper import get_args_parser", "change"),
        ("import bert_serving.server", "change"),
    ],
)
def test_imports(line, kind):
    assert [found_kind for _, found_kind, _ in found(line)] == [kind]


def test_other_programs_have_no_findings():
    assert (
        found("import numpy\nfrom . import bert_serving\nbc = BertClient()\nbc.encode(['a'])") == []
    )
    assert found('"""Once used bert-serving-start -cpu."""\n# bert-serving-start\n') == []


@pytest.mark.parametrize(
    ("call", "kind", "what"),
    [
        ("BertClient(ip='10.0.0.1')", "same", "BertClient(ip='10.0.0.1')"),
        ("BertClient('10.0.0.1', 8001)", "differs", "BertClient(port=8001)"),
        ("BertClient('10.0.0.1', 5555)", "change", "BertClient(port=5555)"),
        ("BertClient('10.0.0.1', 8001, 5556)", "same", "BertClient(port_out=5556)"),
        ("BertClient(identity=me)", "change", "BertClient(identity=me)"),
        ("BertClient(timeout=-1)", "differs", "BertClient(timeout=-1)"),
        ("BertClient(check_version=False)", "same", "BertClient(check_version=False)"),
        ("BertClient(speed=3)", "change", "BertClient(speed=3)"),
    ],
)
def test_arguments_of_the_constructor(call, kind, what):
    assert kinds_of(IMPORT + call)[what] == kind


def test_arguments_that_cannot_be_told_are_passed_over():
    assert kinds_of(IMPORT + "BertClient(*here, **there)") == {IMPORT.strip(): "import"}


@pytest.mark.parametrize(
    "program",
    [
        "bc = BertClient()\nbc.listen()",
        "with BertClient() as bc:\n    bc.listen()",
        "def work(bc: BertClient):\n    bc.listen()",
        "bc: BertClient = BertClient()\nbc.listen()",
        "class A:\n    def __init__(self):\n        self.bc = BertClient()\n    def f(self):\n"
        "        self.bc.listen()",
        "BertClient().listen()",
        "if (bc := BertClient()):\n    bc.listen()",
    ],
)
def test_a_client_is_followed_to_its_methods(program):
    kinds = kinds_of(IMPORT + program)
    assert [kind for what, kind in kinds.items() if what.endswith(".listen")] == ["change"]


def test_methods():
    kinds = kinds_of(
        IMPORT
        + """
bc = BertClient()
bc.encode(["a"])
bc.fetch_all()
bc.encode_async(g)
bc.server_status["statistic"]["num_data_request"]
bc.server_status["statistic"]["num_active_client"]
bc.server_config["num_worker"]
bc.server_config["max_seq_len"]
"""
    )
    assert kinds["bc.encode"] == "same"
    assert kinds["bc.fetch_all"] == kinds["bc.encode_async"] == "differs"
    assert kinds["['num_worker']"] == kinds["['statistic']['num_active_client']"] == "change"
    assert not any("max_seq_len" in what or "num_data_request" in what for what in kinds)


def test_names_through_their_module():
    assert kinds_of(
        "import bert_serving.client\nbc = bert_serving.client.BertClient()\nbc.poll()"
    ) == {
        "import bert_serving.client": "import",
        "bert_serving.client.BertClient": "import",
        "bc.poll": "change",
    }
    assert kinds_of("import bert_serving.client as b\nbc = b.BertClient()\nbc.poll()") == {
        "import bert_serving.client": "import",
        "bc.poll": "change",
    }
    assert kinds_of("import bert_serving.server as s\ns.BertServer(args)") == {
        "import bert_serving.server": "change",
        "s.BertServer": "change",
    }


@pytest.mark.parametrize(
    "program",
    [
        'os.system("bert-serving-start -model_dir x -cpu && echo done -xla")',
        'subprocess.run(["bert-serving-start", "-model_dir", folder, "-cpu"])',
        "from bert_serving.server.helper import get_args_parser\n"
        "args = get_args_parser().parse_args(['-model_dir', 'x', '-cpu'])",
        'command = f"bert-serving-start -model_dir={folder} -cpu"',
    ],
)
def test_flags_of_the_server_in_programs(program):
    kinds = kinds_of(program)
    assert kinds["-model_dir"] == kinds["-cpu"] == "change"
    assert "-xla" not in kinds


def test_words_with_a_dash_in_other_programs_are_not_flags():
    assert found("run(['ls', '-port', '-cpu'])") == []


def test_a_script_is_read_to_the_end_of_its_command():
    script = textwrap.dedent(
        """
        # start it
        bert-serving-start -model_dir /model \\
            -num_worker=4 -gpu 0.3 -no_such 1; ls -port
        bert-serving-terminate -port 5555
        curl http://here:8125/encode -d '{}'; curl http://here:8125/status/server
        """
    )
    findings = check_text(script)
    assert {finding.rule.kind for finding in findings} == {Kind.CHANGE}
    assert [(finding.line, finding.what) for finding in findings] == [
        (3, "bert-serving-start"),
        (3, "-model_dir"),
        (3, "-num_worker"),
        (3, "-gpu"),
        (3, "-no_such"),
        (5, "bert-serving-terminate"),
        (6, "/encode"),
        (6, "/status/server"),
    ]
    becomes = {finding.what: finding.rule.becomes for finding in findings}
    assert becomes["-gpu"] == FLAGS["gpu_memory_fraction"]  # a prefix, as 1.10 took it
    assert "no such flag" in becomes["-no_such"]


def test_prose_with_an_apostrophe_does_not_break_it():
    (finding,) = check_text("don't use bert-serving-start, it's old")
    assert finding.what == "bert-serving-start"


@pytest.mark.parametrize("flag", [*FLAGS, *FLAG_ALIASES])
def test_every_flag_has_an_answer(flag):
    findings = check_text(f"bert-serving-start -{flag} 1")
    assert findings[1].rule.becomes == FLAGS[FLAG_ALIASES.get(flag, flag)]


def run(*arguments):
    """The command as a user types it."""
    return subprocess.run(
        [sys.executable, "-m", "bertron_client.bert_as_service.check", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )


def test_renamed_imports_alone_are_exit_code_0(tmp_path):
    program = tmp_path / "search.py"
    program.write_text(IMPORT + "BertClient(timeout=500).encode(['a'])\n", encoding="utf-8")
    done = run(program)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == (
        f"{program}:1: import: from bert_serving.client import BertClient -> "
        "from bertron_client.bert_as_service import BertClient"
    )
    assert lines[-1] == "0 to change, 1 imports to rename, 1 that differ, 1 the same"


def test_a_folder_is_searched_and_changes_are_exit_code_1(tmp_path):
    for name, text in {
        "app/a.py": IMPORT + "BertClient(identity='x')\n",
        "app/deep/b.py": "x = 1\n",
        "Dockerfile": "CMD bert-serving-start -cpu\n",
        "requirements.txt": "bert-serving-client==1.10.0\n",
        "notes.md": "bert-serving-start\n",  # prose is not a program
        ".venv/lib/c.py": IMPORT,
        "node_modules/d.sh": "bert-serving-start\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    done = run(tmp_path)
    assert done.returncode == 1
    places = [line.split(": ")[0] for line in done.stdout.splitlines()[:-1]]
    assert places == [
        f"{tmp_path}/Dockerfile:1",
        f"{tmp_path}/Dockerfile:1",
        f"{tmp_path}/app/a.py:1",
        f"{tmp_path}/app/a.py:2",
        f"{tmp_path}/requirements.txt:1",
    ]


def test_nothing_found_is_exit_code_0(tmp_path):
    assert run(tmp_path).returncode == 0


def test_a_program_of_python_2_is_said_not_to_be_checked(tmp_path):
    program = tmp_path / "old.py"
    program.write_text("x = 1\nprint x\n", encoding="utf-8")
    done = run(program)
    assert done.returncode == 1
    assert f"{program}:2: change: " in done.stdout
    assert "was not checked" in done.stdout


def test_a_missing_file_is_exit_code_2_and_the_others_are_checked(tmp_path):
    program = tmp_path / "search.py"
    program.write_text(IMPORT, encoding="utf-8")
    done = run(tmp_path / "nowhere.py", program)
    assert done.returncode == 2
    assert "nowhere.py: No such file" in done.stderr
    assert f"{program}:1" in done.stdout
    assert "Traceback" not in done.stderr


def test_it_is_importable_too(tmp_path, capsys):
    assert check.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("0 to change")
