"""Who is told how far a call has come."""

import sys

import numpy as np
import pytest

TEXTS = [f"text {i}" for i in range(40)]  # five requests


@pytest.fixture(autouse=True)
def no_bar(monkeypatch):
    """A bar that is wanted is an ImportError."""
    monkeypatch.setitem(sys.modules, "tqdm", None)


@pytest.mark.parametrize("progress", [False, None, 0, np.False_])
def test_what_is_false_shows_nothing(client, progress):
    assert len(client.embed(TEXTS, progress=progress)) == 40


@pytest.mark.parametrize("progress", [True, 1, np.True_])
def test_what_is_true_shows_a_bar(client, progress):
    with pytest.raises(ImportError, match="progress=True needs the package tqdm"):
        client.embed(TEXTS, progress=progress)


def test_a_function_is_told_of_each_request(client):
    class Counts(list):
        """False as long as it is empty, and called all the same."""

        __call__ = list.append

    counts = Counts()
    client.embed(TEXTS, progress=counts)
    assert counts == [8] * 5
