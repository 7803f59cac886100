"""The documents say what the code does: commands, options, limits, links and examples."""

import argparse
import ast
import dataclasses
import importlib
import inspect
import json
import re
import shlex
from pathlib import Path

import pytest
from bertron_client import Client, Embeddings
from bertron_loadtest.__main__ import COMMANDS as LOAD_COMMANDS
from bertron_server.cli import COMMANDS
from bertron_server.command import HTTP_INPUT_BYTES, SINCE_VERSION
from bertron_torchscript import manifest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

ROOT = Path(__file__).parents[2]
GENERATED = {".venv", "build", "dist", ".pytest_cache", ".mypy_cache", ".ruff_cache"}
DOCUMENTS = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in sorted(ROOT.rglob("*.md"))
    if not GENERATED & set(path.relative_to(ROOT).parts)
}
README = DOCUMENTS["README.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLES = [
    pytest.param(code, id=f"{document}-{number}")
    for document, text in DOCUMENTS.items()
    for number, (language, code) in enumerate(FENCE.findall(text))
    if language == "python"
]


def commands(text: str) -> list[str]:
    """Every line of a shell block and every piece of inline code."""
    blocks = [
        line
        for language, code in FENCE.findall(text)
        if language == "sh"
        for line in code.splitlines()
    ]
    return blocks + re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


ALL_COMMANDS = [(name, line) for name, text in DOCUMENTS.items() for line in commands(text)]


def parser_of(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=command)
    importlib.import_module(COMMANDS[command].module).add_arguments(parser)
    return parser


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    known = {option for action in parser._actions for option in action.option_strings}
    return known - {"-h", "--help"}


def table_rows(text: str, heading: str) -> list[list[str]]:
    """The cells below the table whose first heading this is."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith(f"| {heading} |"):
            next(lines)
            break
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def first_column_options(text: str, heading: str) -> set[str]:
    return {
        option
        for row in table_rows(text, heading)
        for option in re.findall(r"`(--[\w-]+)`", row[0])
    }


def config(model: str) -> model_config_pb2.ModelConfig:
    text = (ROOT / "model_repository" / model / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def make_targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))


def test_make_targets_exist():
    named = {
        (document, word)
        for document, line in ALL_COMMANDS
        if line.startswith("make ")
        for word in shlex.split(line, comments=True)[1:]
        if "=" not in word
    }
    assert {target for _, target in named} <= make_targets(), named
    assert {target for document, target in named if document == "README.md"} >= {
        "demo",
        "serve",
        "test",
        "help",
    }


def test_contributing_lists_every_make_target():
    rows = table_rows(DOCUMENTS["CONTRIBUTING.md"], "target")
    assert {row[0].strip("`").removeprefix("make ") for row in rows} == make_targets()


def test_make_variables_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for _, line in ALL_COMMANDS:
        if line.startswith("make "):
            for variable in re.findall(r"\b([A-Z_]+)=", line):
                assert re.search(rf"^{variable} \?=", makefile, re.MULTILINE), line


def test_bertron_commands_and_their_options_exist():
    checked = set()
    for document, line in ALL_COMMANDS:
        if not line.startswith("bertron "):
            continue
        command, *arguments = shlex.split(line.partition(" -- ")[0], comments=True)[1:]
        assert command in COMMANDS, (document, line)
        given = {word.partition("=")[0] for word in arguments if word.startswith("--")}
        assert given <= options_of(parser_of(command)), (document, line)
        checked.add(command)
    assert checked == set(COMMANDS)


def test_the_examples_of_bertron_parse():
    for document, text in DOCUMENTS.items():
        for language, code in FENCE.findall(text):
            for line in code.splitlines() if language == "sh" else ():
                if line.startswith("bertron "):
                    command, *arguments = shlex.split(line, comments=True)[1:]
                    parser_of(command).parse_args(arguments)  # SystemExit, with the line above
                    assert document


@pytest.mark.parametrize("command", COMMANDS)
def test_the_readmes_table_has_every_option(command):
    named = first_column_options(README, f"`bertron {command}`")
    assert named == options_of(parser_of(command))


def load_parser_of(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=command)
    module = LOAD_COMMANDS[command][0]
    importlib.import_module(f"bertron_loadtest.{module}").add_arguments(parser)
    return parser


# `report` has those of `run` that judge, and `suite` those of `run` that load.
@pytest.mark.parametrize("command", sorted(LOAD_COMMANDS.keys() - {"report", "suite"}))
def test_the_load_tests_tables_have_every_option(command):
    document = "docs/perf-analyzer.md" if command == "cross-check" else "loadtest/README.md"
    named = first_column_options(DOCUMENTS[document], f"`bertron_loadtest {command}`")
    assert named == options_of(load_parser_of(command))


def test_options_of_the_load_tests_that_are_in_no_table_are_runs():
    of_run = options_of(load_parser_of("run"))
    for command in ("report", "suite"):
        assert options_of(load_parser_of(command)) <= of_run


def test_every_load_test_command_is_listed_and_its_examples_parse():
    text = DOCUMENTS["loadtest/README.md"]
    assert [row[0] for row in table_rows(text, "command")] == [
        f"`{name}`" for name in LOAD_COMMANDS
    ]
    for document, line in ALL_COMMANDS:
        words = shlex.split(line, comments=True) if "-m bertron_loadtest " in line else []
        if words:
            command, *arguments = words[words.index("bertron_loadtest") + 1 :]
            load_parser_of(command).parse_args(arguments)  # SystemExit, with the line above
            assert document


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("serve", "--http-port"),
        ("serve", "--grpc-port"),
        ("serve", "--metrics-port"),
        ("serve", "--ready-timeout-s"),
        ("serve", "--exit-timeout-s"),
        ("serve", "--address"),
        ("encode", "--timeout-s"),
        ("encode", "--batch"),
        ("encode", "--url"),
        ("encode", "--column"),
        ("health", "--url"),
        ("health", "--timeout-s"),
    ],
)
def test_the_readmes_defaults_are_the_codes(command, option):
    rows = table_rows(README, f"`bertron {command}`")
    (meaning,) = (row[1] for row in rows if f"`{option}`" in row[0])
    default = str(parser_of(command).get_default(option[2:].replace("-", "_")))
    default = default.removesuffix(".0")
    assert re.search(rf"default `?{re.escape(default)}(?![\w.])", meaning), meaning


def values_in_configs(key: str) -> dict[str, int]:
    """The number under ``key`` by model, wherever a configuration keeps it."""
    values = {}
    for model in ("text_embedding", "tokenizer", "bert"):
        parsed = config(model)
        if key in parsed.parameters:
            values[model] = int(parsed.parameters[key].string_value)
        elif key == "max_batch_size":
            values[model] = parsed.max_batch_size
    return values


def test_the_limits_are_those_of_the_configurations():
    found = set()
    for _, value, where in table_rows(README, "limit"):
        *models, key = re.findall(r"`(\w+)`", where)
        configured = values_in_configs(key)
        assert {configured[model] for model in models} == {int(value.replace(",", ""))}, where
        found |= {(model, key) for model in models}
    assert found >= {
        *(
            (model, key)
            for model in ("tokenizer", "text_embedding")
            for key in config(model).parameters
            if key.startswith("max_")
        ),
        *((model, "max_batch_size") for model in ("tokenizer", "bert", "text_embedding")),
    }


def test_the_limit_of_http_bodies_is_the_codes():
    (version,) = SINCE_VERSION.values()
    assert f"from {version[0]}.{version[1]} on `bertron serve` sets" in README
    assert f"sets {HTTP_INPUT_BYTES // 1024**2} MiB" in README


def test_what_inputs_md_quotes_has_the_limits_values():
    inputs = DOCUMENTS["docs/inputs.md"]
    for text in (
        f"the server takes at most {values_in_configs('max_characters_per_text')['tokenizer']};",
        f"at most {values_in_configs('max_characters_per_request')['tokenizer']} in all its texts",
        f"the model takes at most {values_in_configs('max_tokens_per_text')['tokenizer']};",
        f"batch-size must be <= {values_in_configs('max_batch_size')['tokenizer']} for",
    ):
        assert text in inputs


def test_the_manifests_table_is_the_codes():
    section = DOCUMENTS["docs/architecture.md"].split("## The manifest")[1].split("\n## ")[0]
    assert f"`manifest.json`, format {manifest.FORMAT}:" in section
    cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    named = {name.split(".")[0] for cell in cells for name in re.findall(r"`([^`]+)`", cell)}
    assert named == {field.name for field in dataclasses.fields(manifest.Manifest)}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_relative_link_resolves(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", DOCUMENTS[document])):
        if "://" not in target:
            path = (ROOT / document).parent / target.partition("#")[0]
            assert path.exists(), f"{document} links to {target}"


def test_every_decision_that_is_cited_is_there():
    there = {path.name for path in (ROOT / "docs" / "decisions").glob("*.md")}
    numbers = {name[:4] for name in there}
    assert len(numbers) == len(there)
    sources = [path for path in ROOT.rglob("*") if path.suffix in (".py", ".pbtxt", ".toml")]
    for path in sources:
        if GENERATED & set(path.relative_to(ROOT).parts):
            continue
        cited = re.findall(r"docs/decisions/(\d{4})([\w-]*\.md)?", path.read_text("utf-8"))
        for number, rest in cited:
            assert number in numbers, f"{path} cites decision {number}"
            assert not rest or number + rest in there, f"{path} cites {number}{rest}"


@pytest.mark.parametrize("code", EXAMPLES)
def test_the_python_examples_use_what_exists(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            assert all(importlib.util.find_spec(alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            method = Client.__init__ if called == "Client" else getattr(Client, called, None)
            if method is not None and called != "close":
                named = {keyword.arg for keyword in node.keywords}
                assert named <= set(inspect.signature(method).parameters), called
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "answer":
            fields = Embeddings.__dataclass_fields__
            assert node.attr in fields or hasattr(Embeddings, node.attr)


def test_the_client_readme_has_every_public_method():
    documented = {
        re.match(r"`(\w+)", row[0])[1]
        for row in table_rows(DOCUMENTS["client/README.md"], "method")
    }
    public = {name for name in vars(Client) if not name.startswith("_")}
    assert documented == public


def test_the_curl_examples_send_json_to_real_tensors():
    bodies = re.findall(r"-d '(.*?)'", README, re.DOTALL)
    generate, infer = (json.loads(body) for body in bodies)
    names = {tensor.name for tensor in config("text_embedding").input}
    assert set(generate) <= names
    for tensor in infer["inputs"]:
        assert tensor["name"] in names
        assert tensor["shape"] == [len(tensor["data"]), 1]
    outputs = {tensor.name for tensor in config("text_embedding").output}
    assert all(name in README for name in outputs)


def test_the_folder_table_names_what_is_there():
    for folder, _ in table_rows(README, "folder"):
        assert (ROOT / re.search(r"`([\w/]+)`", folder)[1]).is_dir(), folder


def test_the_demos_texts_have_their_notice():
    assert (ROOT / "server/bertron_server/demo_texts.txt").is_file()
    assert "server/bertron_server/demo_texts.txt" in (ROOT / "NOTICE").read_text(encoding="utf-8")
    assert "(NOTICE)" in README


def test_the_place_for_figures_is_there():
    assert "## Measured" in README
