"""Every Python example of the client's README runs, against a server on loopback."""

import inspect
import re
from pathlib import Path

import pytest
from bertron_client import Client

README = (Path(__file__).parents[2] / "client" / "README.md").read_text(encoding="utf-8")
METHODS = dict(
    re.findall(r"^\| `(\w+)(\(.*?\))` \| ", README.partition("**Texts**")[0], re.MULTILINE)
)
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_example_runs(server, number, capsys):
    server.behaviour.embedding_size = 16
    code = EXAMPLES[number]
    if "import sklearn" in code or "from sklearn" in code:
        pytest.importorskip("sklearn")
    code = code.replace("grpc://127.0.0.1:8001", server.grpc_url)
    code = code.replace("http://127.0.0.1:8000", server.http_url)
    exec(compile(code, f"example {number}", "exec"), {"__name__": "__main__"})  # noqa: S102
    assert "Traceback" not in capsys.readouterr().out


def test_every_public_name_is_in_the_readme():
    import bertron_client

    missing = [name for name in bertron_client.__all__ if name not in README]
    assert missing == ["BinaryVectors", "Int8Vectors"]  # shown by what makes them


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_shown_with_the_arguments_that_it_takes(name):
    _, *parameters = inspect.signature(getattr(Client, name)).parameters.values()
    bare = [parameter.replace(annotation=parameter.empty) for parameter in parameters]
    assert METHODS[name] == str(inspect.Signature(bare)).replace("'", '"')
