"""A call with an argument of the wrong type says so at once, and not at its first fault."""

import numpy as np
import pytest
from bertron_client import RetryPolicy
from bertron_client.testing import MockTransport
from fake_triton_model import vectors_of

SECRET = b"a-long-secret"


@pytest.mark.parametrize("scheme", ["http", "https", "grpc", "grpcs"])
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("headers", [("a", "b")], "headers is list, a mapping of str to str or None is wanted"),
        ("headers", [], "headers is list, a mapping of str to str or None is wanted"),
        ("headers", {"x-a": SECRET}, "the value of header 'x-a' is bytes, a str is wanted"),
        ("headers", {"x-a": None}, "the value of header 'x-a' is NoneType, a str is wanted"),
        ("headers", {5: "a"}, "a name in headers is int, a str is wanted"),
        ("token", SECRET, "token is bytes, a str or None is wanted"),
        ("tls", "ca.pem", "tls is str, a Tls or None is wanted"),
        ("tls", False, "tls is bool, a Tls or None is wanted"),
        ("proxy", 5, "proxy is int, a url as str or None is wanted"),
        ("retry", 5, "retry is int, a RetryPolicy or None is wanted"),
        ("retry", 0, "retry is int, a RetryPolicy or None is wanted"),
        ("retry", RetryPolicy, "retry is type, a RetryPolicy or None is wanted"),
        ("shared_memory", "no", "shared_memory is str, True or False is wanted"),
        ("transport", 5, "transport is int, an object with the method perform or None is wanted"),
        ("max_requests_in_flight", "4", "max_requests_in_flight is '4', a whole number is wanted"),
        ("max_requests_in_flight", 2.5, "max_requests_in_flight is 2.5, a whole number is wanted"),
        ("timeout_s", None, "timeout_s is None, a number of seconds is wanted"),
        ("timeout_s", "5", "timeout_s is '5', a number of seconds is wanted"),
        ("connect_timeout_s", True, "connect_timeout_s is True, a number of seconds is wanted"),
    ],
)
def test_an_argument_of_another_type_is_named_by_the_constructor(
    open_client, scheme, name, value, words
):
    with pytest.raises(TypeError) as caught:
        open_client(f"{scheme}://127.0.0.1:1", **{name: value})
    assert str(caught.value) == words


def test_numbers_and_booleans_may_be_numpys(open_client):
    client = open_client(
        "http://mock",
        timeout_s=np.float32(5),
        connect_timeout_s=np.int64(5),
        max_requests_in_flight=np.int64(2),
        shared_memory=np.False_,
        transport=MockTransport(embedding_size=8),
    )
    assert client.embed(list("abc"), normalize=np.True_).shape == (3, 8)


@pytest.mark.parametrize("value", ["no", 1, [True]])
def test_options_of_a_call_that_are_no_booleans_are_named(client, server, value):
    kind = type(value).__name__
    with pytest.raises(TypeError, match=f"normalize is {kind}, True, False or None is wanted"):
        client.embed(["a"], normalize=value)
    with pytest.raises(TypeError, match=f"normalize is {kind}, True, False or None is wanted"):
        list(client.embed_iter(["a"], normalize=value))
    with pytest.raises(TypeError, match=f"is_pretokenized is {kind}, True or False is wanted"):
        client.tokenize([["a"]], is_pretokenized=value)
    with pytest.raises(TypeError, match="timeout_s is '5', a number of seconds is wanted"):
        client.embed(["a"], timeout_s="5")
    assert not server.behaviour.arrivals
    np.testing.assert_array_equal(client.embed(["a"], normalize=False), vectors_of(["a"]))
