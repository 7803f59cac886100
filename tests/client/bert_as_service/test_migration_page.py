"""docs/coming-from-bert-as-service.md, the checker's tables and the code say the same."""

import inspect
import re
from pathlib import Path

import pytest
from bertron_client.bert_as_service import BertClient, PoolingStrategy
from bertron_client.bert_as_service._check_rules import (
    COMMANDS,
    CONSTRUCTOR,
    FLAG_ALIASES,
    FLAGS,
    HTTP_ROUTES,
    METHODS,
    SERVER_KEYS,
    STATISTIC_KEYS,
)
from bertron_client.bert_as_service._client import MAX_UNFETCHED
from bertron_client.bert_as_service._deadline import DEFAULT_TIMEOUT_MS
from bertron_client.bert_as_service._server_status import POOLING_STRATEGIES

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/coming-from-bert-as-service.md").read_text(encoding="utf-8")


def table(heading):
    """Cells of the rows below a heading."""
    _, found, rest = PAGE.partition(f"\n| {heading} |")
    assert found, heading
    rows = [line for line in rest.split("\n\n")[0].splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r" \| ", row.strip("|"))] for row in rows]


def words(heading, pattern=r"`([^`]+)`"):
    """What stands in backticks in a table's first column."""
    return [word for row in table(heading) for word in re.findall(pattern, row[0])]


def test_every_flag_is_on_the_page_once():
    assert sorted(words("flag", r"`-(\w+)`")) == sorted([*FLAGS, *FLAG_ALIASES])


@pytest.mark.parametrize("flag", FLAGS)
def test_the_checker_and_the_page_name_the_same_option(flag):
    (row,) = [row for row in table("flag") if f"`-{flag}`" in row[0]]
    options = re.findall(r"--[a-z-]+|KIND_CPU|instance_group|gpus|max_batch_size", FLAGS[flag])
    for option in options:
        assert option in row[1] or (option == "instance_group" and "that" in row[1]), row
    assert ("not here" in FLAGS[flag]) == row[1].startswith("not here")


def test_every_argument_and_method_is_on_the_page():
    arguments = words("argument of `BertClient`")
    assert set(CONSTRUCTOR) <= set(arguments)
    signature = inspect.signature(BertClient.__init__).parameters
    assert set(CONSTRUCTOR) < set(signature)
    assert set(signature) - {"self", "client_options"} <= set(arguments)
    methods = {re.match(r"\w+", word)[0] for word in words("method")}
    assert methods - {"with"} == set(METHODS)
    public = {name for name in vars(BertClient) if not name.startswith("_")}
    assert public == set(METHODS)


def test_every_command_route_key_and_strategy_is_on_the_page():
    commands = words("bert-as-service | here", r"`(bert-serving-\w+)`")
    assert set(commands) == {name for name in COMMANDS if name[13:] not in ("client", "server")}
    assert set(words("route", r"(?:GET|POST) (/[\w/]+)")) == set(HTTP_ROUTES)
    assert set(words("key")) == {*SERVER_KEYS, *STATISTIC_KEYS}
    strategies = set(words("strategy"))
    assert strategies == set(PoolingStrategy.__members__)
    for option, strategy in POOLING_STRATEGIES.items():
        (row,) = [row for row in table("strategy") if f"`{strategy.name}`" in row[0]]
        assert row[1] == f"`--pooling {option}`"


def test_the_numbers_are_the_codes():
    assert f"default {DEFAULT_TIMEOUT_MS:,.0f};" in PAGE
    assert f"at most {MAX_UNFETCHED} batches ahead" in PAGE
