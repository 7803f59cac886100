"""The two clients are one interface, written for the oldest Python that they promise."""

import ast
import inspect
from pathlib import Path

import pytest
from bertron_client import AsyncClient, Client

SOURCES = sorted((Path(__file__).parents[2] / "client" / "bertron_client").rglob("*.py"))
OLDEST = (3, 9)


def public(client):
    return {name for name in vars(client) if not name.startswith("_")}


def test_both_clients_have_the_same_methods():
    assert public(Client) == public(AsyncClient)


@pytest.mark.parametrize("name", ["__init__", *sorted(public(Client))])
def test_a_method_takes_the_same_arguments_in_both(name):
    def shape(client):
        parameters = inspect.signature(getattr(client, name)).parameters.values()
        return [(p.name, p.kind, p.default) for p in parameters]

    assert shape(Client) == shape(AsyncClient)


@pytest.mark.parametrize("name", sorted(public(AsyncClient) - {"embed_iter"}))
def test_what_waits_is_awaited(name):
    assert inspect.iscoroutinefunction(getattr(AsyncClient, name))
    assert not inspect.iscoroutinefunction(getattr(Client, name))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_the_clients_syntax_is_that_of_the_oldest_python(path):
    ast.parse(path.read_text(encoding="utf-8"), feature_version=OLDEST)
