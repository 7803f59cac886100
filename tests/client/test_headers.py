"""What goes with every request: a token, headers, and the trace that the caller is in."""

import pytest
from bertron_client import AuthenticationError, Client, RetryPolicy
from opentelemetry import propagate, trace
from opentelemetry.propagators.textmap import TextMapPropagator, default_setter
from opentelemetry.sdk.trace import TracerProvider

TOKEN = "a-long-secret"  # noqa: S105


def use_everything(client):
    texts = [f"text {i}" for i in range(40)]
    client.embed(texts)
    list(client.embed_iter(texts))
    client.tokenize(texts)
    client.server_info()
    client.statistics()
    client.is_ready()


def test_headers_go_with_every_request(server, protocol, open_client):
    client = open_client(
        server.url(protocol), headers={"X-Tenant": "blue", "x-b": "1, 2"}, token=TOKEN
    )
    use_everything(client)
    kinds = {arrival.what for arrival in server.behaviour.arrivals}
    assert kinds >= {"infer", "config", "metadata", "model-metadata", "statistics", "ready"}
    for arrival in server.behaviour.arrivals:
        assert arrival.headers["x-tenant"] == "blue"
        assert arrival.headers["x-b"] == "1, 2"
        assert arrival.headers["authorization"] == f"Bearer {TOKEN}"


def test_a_server_that_wants_a_token(server, protocol, open_client):
    server.behaviour.required_token = TOKEN
    with_token = open_client(server.url(protocol), token=TOKEN)
    assert len(with_token.embed(["a"])) == 1
    for options in ({}, {"token": "another"}, {"headers": {"Authorization": "Basic eDp5"}}):
        client = open_client(server.url(protocol), **options)
        count = len(server.behaviour.arrivals)
        with pytest.raises(AuthenticationError, match="a bearer token is wanted"):
            client.embed(["a"])
        assert len(server.behaviour.arrivals) == count + 1  # nothing is tried again
        assert not client.is_ready()


def test_a_restricted_part_of_the_server(server, protocol, open_client):
    server.behaviour.restricted = {"statistics"}
    client = open_client(server.url(protocol), retry=RetryPolicy(max_retries=0))
    assert len(client.embed(["a"])) == 1
    with pytest.raises(AuthenticationError, match="is restricted, expecting header"):
        client.statistics()
    name = "admin-key" if protocol == "http" else "triton-grpc-protocol-admin-key"
    admin = open_client(server.url(protocol), headers={name: "key"})
    assert admin.statistics()["bert"].inferences == 1


def test_secrets_are_not_shown(server, protocol, open_client):
    server.behaviour.required_token = "another"  # noqa: S105
    client = open_client(server.url(protocol), token=TOKEN, headers={"x-key": TOKEN})
    with pytest.raises(AuthenticationError) as caught:
        client.embed(["a"])
    assert TOKEN not in f"{client!r} {caught.value}"


def test_headers_that_frame_a_request_are_the_clients_own(protocol, open_client):
    for name in ("Content-Length", "transfer-encoding", "Connection"):
        with pytest.raises(ValueError, match=f"header '{name.lower()}' is the client's own"):
            open_client(f"{protocol}://127.0.0.1:1", headers={name: "5"})


@pytest.mark.parametrize(
    "headers", [{"x": "a\r\nb: c"}, {"x\n": "a"}, {"x": "ż"}, {"x": "\0"}, {"": "x"}, {"a b": "x"}]
)
def test_headers_that_would_break_out_are_refused(protocol, open_client, headers):
    with pytest.raises(ValueError, match="header"):
        open_client(f"{protocol}://127.0.0.1:1", headers=headers)
    with pytest.raises(ValueError, match=r"header|token"):
        open_client(f"{protocol}://127.0.0.1:1", token="a\nb: c")  # noqa: S106


def test_a_token_and_another_authorization_exclude_each_other(protocol, open_client):
    with pytest.raises(ValueError, match="token and an authorization header"):
        open_client(f"{protocol}://127.0.0.1:1", token="a", headers={"AUTHORIZATION": "b"})  # noqa: S106


def test_the_callers_trace_goes_on_at_the_server(client, server):
    tracer = TracerProvider().get_tracer("tests")
    with tracer.start_as_current_span("search") as span:
        use_everything(client)
    wanted = format(span.get_span_context().trace_id, "032x")
    assert server.behaviour.arrivals
    for arrival in server.behaviour.arrivals:
        version, trace_id, _span_id, _flags = arrival.headers["traceparent"].split("-")
        assert (version, trace_id) == ("00", wanted), arrival.what


def test_no_trace_no_header(client, server):
    assert not trace.get_current_span().get_span_context().is_valid
    client.embed(["a"])
    assert all("traceparent" not in arrival.headers for arrival in server.behaviour.arrivals)


class Propagator(TextMapPropagator):
    """Injects one header, as Amazon's AwsXRayPropagator does."""

    def __init__(self, name):
        self._name = name

    def inject(self, carrier, context=None, setter=default_setter):  # noqa: ARG002 - its interface
        setter.set(carrier, self._name, "Root=1-5759e988-bd862e3fe1be46a994272793")

    def extract(self, carrier, context=None, getter=None):
        raise NotImplementedError

    @property
    def fields(self):
        return {self._name}


@pytest.fixture
def propagator():
    """Has traces told in a header of some name, for the time of a test."""
    before = propagate.get_global_textmap()
    yield lambda name: propagate.set_global_textmap(Propagator(name))
    propagate.set_global_textmap(before)


def test_a_trace_may_have_a_name_with_capitals(client, server, propagator):
    propagator("X-Amzn-Trace-Id")
    use_everything(client)
    assert server.behaviour.arrivals
    for arrival in server.behaviour.arrivals:
        assert arrival.headers["x-amzn-trace-id"].startswith("Root=1-")


def test_what_grpc_refuses_is_not_taken_for_a_closed_client(server, monkeypatch):
    """As some versions of gRPC refuse a name with capitals."""

    def refuse(*_arguments, **_options):
        raise ValueError("metadata was invalid")

    with Client(server.grpc_url) as client:
        client.embed(["a"])
        monkeypatch.setattr(client._transport._stub, "ModelInfer", refuse)
        with pytest.raises(ValueError, match="metadata was invalid"):
            client.embed(["a"])
