import subprocess
import sys

import pytest

LIBRARIES = {
    "langchain": "langchain_core",
    "llama_index": "llama_index",
    "haystack": "haystack",
    "sklearn": "sklearn",
}


def modules_after(statement):
    program = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_the_client_imports_none_of_them():
    assert not modules_after("import bertron_client.integrations") & set(LIBRARIES.values())


@pytest.mark.parametrize("name", ["langchain", "sklearn"])  # haystack itself imports torch
def test_an_adapter_imports_its_own_library_only(name):
    found = modules_after(f"import bertron_client.integrations.{name}")
    assert found & set(LIBRARIES.values()) == {LIBRARIES[name]}
