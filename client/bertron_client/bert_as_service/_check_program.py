"""Finds what a program, or a text such as a shell script, uses of bert-as-service 1.10."""

from __future__ import annotations

import ast
import re
import shlex
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Set

from ._check_rules import (
    CLIENT_CLASSES,
    COMMANDS,
    CONSTRUCTOR,
    FLAGS,
    HTTP_ROUTES,
    MAX_CONCURRENCY,
    METHODS,
    NAMES,
    OLD_PORT,
    OLD_PORTS,
    OUR_MODULE,
    SERVER_KEYS,
    STATISTIC_KEYS,
    UNKNOWN_KEY,
    UNKNOWN_METHOD,
    UNKNOWN_NAME,
    Kind,
    Rule,
    flag_named,
)

_COMMAND = re.compile(r"\bbert-serving-(?:start|terminate|benchmark|server|client)\b")
_ROUTE = re.compile(r"https?://[^\s\"'/]+(/encode|/status/server|/status/client)\b")
_SHELL_ENDS = {"&&", "||", ";", "|", "&", ">", ">>", "2>&1"}


class Finding(NamedTuple):
    """One use, and what it becomes."""

    line: int
    what: str
    rule: Rule


def check_program(source: str) -> List[Finding]:
    """Return what a Python program uses, by line.

    Raises:
        SyntaxError: It is not Python 3.
    """
    once_each = dict.fromkeys(_Program(ast.parse(source)).findings())
    return sorted(once_each, key=lambda finding: finding.line)


def check_text(text: str, first_line: int = 1) -> List[Finding]:
    """Return the commands, flags, packages and routes in lines that are not Python."""
    findings = []
    for line, content in _logical_lines(text, first_line):
        for match in _COMMAND.finditer(content):
            command = match.group()
            findings.append(Finding(line, command, COMMANDS[command]))
            if command == "bert-serving-start":
                findings += _flags(_shell_words(content[match.end() :]), line)
        for match in _ROUTE.finditer(content):
            findings.append(Finding(line, match.group(1), HTTP_ROUTES[match.group(1)]))
    return findings


def _logical_lines(text: str, first_line: int) -> Iterator[tuple[int, str]]:
    """Lines joined where they end with a backslash, with the number of the first."""
    start = first_line
    parts: List[str] = []
    for number, line in enumerate(text.splitlines(), start=first_line):
        if not parts:
            start = number
        parts.append(line[:-1] if line.endswith("\\") else line)
        if not line.endswith("\\"):
            yield start, " ".join(parts)
            parts = []
    if parts:
        yield start, " ".join(parts)


def _shell_words(text: str) -> List[str]:
    """The words of one command, up to where the shell begins another."""
    try:
        words = shlex.split(text, comments=True)
    except ValueError:  # a quote that is not closed, as in prose
        words = text.split()
    for number, word in enumerate(words):
        if word in _SHELL_ENDS:
            return words[:number]
        if word.endswith(";"):
            return [*words[:number], word[:-1]]
    return words


def _flags(words: Sequence[str], line: int) -> List[Finding]:
    """What becomes of each flag of bert-serving-start among ``words``."""
    findings = []
    for word in words:
        name = word.partition("=")[0]
        if re.fullmatch(r"--?[A-Za-z]\w*", name) is None:
            continue
        flag = flag_named(name.lstrip("-"))
        becomes = "bert-serving-start has no such flag" if flag is None else FLAGS[flag]
        findings.append(Finding(line, name, Rule(Kind.CHANGE, becomes)))
    return findings


def _string(node: Optional[ast.AST]) -> Optional[str]:
    """A string's text, with {} for what an f-string puts in; None for anything else."""
    if isinstance(node, ast.JoinedStr):
        return "".join(_string(value) or "{}" for value in node.values)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return None


def _owner(node: ast.AST) -> str:
    return "BertClient()" if isinstance(node, ast.Call) else ast.unparse(node)


class _Program:
    """One parsed program. Names mean the same throughout the file, which is true of nearly all."""

    def __init__(self, tree: ast.Module) -> None:
        self._nodes = list(ast.walk(tree))
        # Docstrings, and the pieces of f-strings, which are read as a whole.
        self._passed_over: Set[int] = set()
        for node in self._nodes:
            if isinstance(node, ast.Expr):
                self._passed_over.add(id(node.value))
            elif isinstance(node, ast.JoinedStr):
                self._passed_over.update(map(id, node.values))
        self._names: Dict[str, str] = {}  # what a name stands for, such as "bert_serving.client"
        for node in self._nodes:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                self._learn(node)
        self._clients: Set[str] = set()  # expressions that hold a client, as source
        for node in self._nodes:
            self._clients |= self._clients_made_by(node)
        self._starts_servers = any(
            name.startswith("bert_serving.server") for name in self._names.values()
        )

    def findings(self) -> Iterator[Finding]:
        """Everything found, in no order; one may come twice."""
        for node in self._nodes:
            if isinstance(node, ast.Import):
                yield from self._import(node)
            elif isinstance(node, ast.ImportFrom):
                yield from self._import_from(node)
            elif isinstance(node, ast.Call):
                yield from self._call(node)
            elif isinstance(node, ast.Attribute):
                yield from self._attribute(node)
            elif isinstance(node, ast.Subscript):
                yield from self._subscript(node)
            elif isinstance(node, (ast.List, ast.Tuple)):
                yield from self._words(node)
            elif isinstance(node, (ast.Constant, ast.JoinedStr)):
                text = _string(node)
                if text is not None and id(node) not in self._passed_over:
                    yield from check_text(text, node.lineno)

    def _learn(self, node: ast.Import | ast.ImportFrom) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "bert_serving":
                    if alias.asname:
                        self._names[alias.asname] = alias.name
                    else:
                        self._names["bert_serving"] = "bert_serving"
        elif (node.module or "").partition(".")[0] == "bert_serving" and not node.level:
            for alias in node.names:
                if alias.name == "*":
                    for name in NAMES.get(str(node.module), ()):
                        self._names[name] = f"{node.module}.{name}"
                self._names[alias.asname or alias.name] = f"{node.module}.{alias.name}"

    def _meaning(self, node: ast.AST) -> Optional[str]:
        """The dotted name of bert_serving that an expression stands for."""
        if isinstance(node, ast.Name):
            return self._names.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self._meaning(node.value)
            return None if owner is None else f"{owner}.{node.attr}"
        return None

    def _class_of(self, node: ast.AST) -> Optional[str]:
        """BertClient or ConcurrentBertClient, where an expression stands for one of them."""
        meaning = self._meaning(node) or ""
        name = meaning.rpartition(".")[2]
        return name if meaning == f"bert_serving.client.{name}" and name in CLIENT_CLASSES else None

    def _clients_made_by(self, node: ast.AST) -> Set[str]:
        """Where a statement, a ``with`` or a parameter puts a client."""
        targets: List[Optional[ast.AST]] = []
        if isinstance(node, ast.Assign) and self._is_new_client(node.value):
            targets = list(node.targets)
        elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)) and self._is_new_client(node.value):
            targets = [node.target]
        elif isinstance(node, ast.withitem) and self._is_new_client(node.context_expr):
            targets = [node.optional_vars]
        elif isinstance(node, ast.arg) and node.annotation and self._class_of(node.annotation):
            return {node.arg}
        return {ast.unparse(target) for target in targets if target is not None}

    def _is_new_client(self, node: Optional[ast.AST]) -> bool:
        return isinstance(node, ast.Call) and self._class_of(node.func) is not None

    def _import(self, node: ast.Import) -> Iterator[Finding]:
        for alias in node.names:
            if alias.name.partition(".")[0] != "bert_serving":
                continue
            if alias.name in ("bert_serving", "bert_serving.client"):
                rule = Rule(Kind.IMPORT, f"import {OUR_MODULE}")
            else:
                rule = Rule(Kind.CHANGE, "bertron_server.server, where it starts servers")
            yield Finding(node.lineno, f"import {alias.name}", rule)

    def _import_from(self, node: ast.ImportFrom) -> Iterator[Finding]:
        module = node.module or ""
        if module.partition(".")[0] != "bert_serving" or node.level:
            return
        for alias in node.names:
            what = f"from {module} import {alias.name}"
            if f"{module}.{alias.name}" == "bert_serving.client" or (
                module == "bert_serving.client" and alias.name == "*"
            ):
                rule = Rule(Kind.IMPORT, f"import {OUR_MODULE}")
            else:
                rule = NAMES.get(module, {}).get(alias.name, UNKNOWN_NAME)
            yield Finding(node.lineno, what, rule)

    def _call(self, node: ast.Call) -> Iterator[Finding]:
        kind = self._class_of(node.func)
        if kind is None:
            return
        order = list(CONSTRUCTOR)
        if kind == "ConcurrentBertClient":
            order = ["max_concurrency"]
        given = [(keyword.arg, keyword.value) for keyword in node.keywords]
        for number, argument in enumerate(node.args[: len(order)]):
            if isinstance(argument, ast.Starred):
                break
            given.append((order[number], argument))
        for name, value in given:
            if name is None:
                continue  # ** of something
            rule = MAX_CONCURRENCY if name == "max_concurrency" else CONSTRUCTOR.get(name)
            if name == "port" and isinstance(value, ast.Constant) and value.value in OLD_PORTS:
                rule = OLD_PORT
            if rule is None:
                rule = Rule(Kind.CHANGE, "1.10 has no such argument")
            yield Finding(value.lineno, f"{kind}({name}={ast.unparse(value)})", rule)

    def _attribute(self, node: ast.Attribute) -> Iterator[Finding]:
        if self._is_client(node.value):
            used = METHODS.get(node.attr, UNKNOWN_METHOD)
            yield Finding(node.lineno, f"{_owner(node.value)}.{node.attr}", used)
            return
        module, _, name = (self._meaning(node) or "").rpartition(".")
        rule = NAMES.get(module, {}).get(name)
        source = ast.unparse(node)
        # Behind `import bert_serving.client as bc`, only that line is to be renamed.
        if rule and (rule.kind is Kind.CHANGE or source.startswith("bert_serving.")):
            yield Finding(node.lineno, source, rule)

    def _is_client(self, node: ast.AST) -> bool:
        return self._is_new_client(node) or ast.unparse(node) in self._clients

    def _subscript(self, node: ast.Subscript) -> Iterator[Finding]:
        key = _string(node.slice)
        if key is None:
            return
        what = f"[{key!r}]"
        if self._is_server_dict(node.value) and key not in SERVER_KEYS:
            yield Finding(node.lineno, what, UNKNOWN_KEY)
        elif (
            isinstance(node.value, ast.Subscript)
            and _string(node.value.slice) == "statistic"
            and self._is_server_dict(node.value.value)
            and key not in STATISTIC_KEYS
        ):
            yield Finding(node.lineno, f"['statistic']{what}", UNKNOWN_KEY)

    def _is_server_dict(self, node: ast.AST) -> bool:
        return (
            isinstance(node, ast.Attribute)
            and node.attr in ("server_config", "server_status")
            and self._is_client(node.value)
        )

    def _words(self, node: ast.List | ast.Tuple) -> Iterator[Finding]:
        """A command as a list of words, or the arguments of get_args_parser()."""
        words = [(_string(element) or "", element.lineno) for element in node.elts]
        is_command = any(word == "bert-serving-start" for word, _ in words)
        known = any(word[:1] == "-" and word.lstrip("-") in FLAGS for word, _ in words)
        if is_command or (known and self._starts_servers):
            for word, line in words:
                yield from _flags([word], line)
