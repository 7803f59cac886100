"""Which package may import which, and what a top-level folder must not become."""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "bertron_client": "client",
    "bertron_kernels": "kernels",
    "bertron_torchscript": "kernels",
    "bertron_backend": "python_backend",
    "bertron_server": "server",
    "bertron_loadtest": "loadtest",
}
# The way of a request, and what stands beside it; nothing else of ours may be imported.
MAY_IMPORT = {
    "bertron_client": set(),
    "bertron_kernels": set(),
    "bertron_torchscript": {"bertron_kernels"},
    "bertron_backend": {"bertron_torchscript", "bertron_kernels"},
    "bertron_server": {"bertron_torchscript", "bertron_client"},
    "bertron_loadtest": {"bertron_client", "bertron_server"},
}


def imports_of(package: str) -> set[str]:
    found = set()
    for path in (ROOT / PACKAGES[package] / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module)
    return {name.partition(".")[0] for name in found}


@pytest.mark.parametrize("package", PACKAGES)
def test_dependencies_point_one_way(package):
    ours = {name for name in imports_of(package) if name.startswith("bertron_")} - {package}
    assert ours <= MAY_IMPORT[package]


def test_only_one_file_knows_triton_servers_types():
    backend = ROOT / "python_backend" / "bertron_backend"
    knowing = [
        path.name
        for path in backend.rglob("*.py")
        if "triton_python_backend_utils" in path.read_text()
    ]
    assert knowing == ["triton_io.py"]


def test_no_top_level_folder_is_importable():
    assert [str(path) for path in ROOT.glob("*/__init__.py")] == []
    assert str(ROOT) not in sys.path
    for name in ("kernels", "client", "server", "loadtest", "python_backend"):
        spec = importlib.util.find_spec(name)
        places = [] if spec is None else [*(spec.submodule_search_locations or []), spec.origin]
        assert not any(str(place).startswith(str(ROOT / name)) for place in places)


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("bertron_client", ("torch", "transformers", "triton", "tokenizers")),
        ("bertron_server.cli", ("torch", "transformers")),
        ("bertron_backend.tokenizer_model", ("torch", "transformers")),
        ("bertron_backend.bert_model", ("torch",)),  # it sets how torch's threads wait, first
        ("bertron_torchscript.manifest", ("torch", "transformers")),
    ],
)
def test_light_modules_stay_light(module, forbidden):
    code = "import sys, fake_pb_utils as pb; sys.modules['triton_python_backend_utils'] = pb\n"
    code += f"import {module}; print(*sorted(set({forbidden!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests" / "support")},
    )
    assert done.stdout.split() == []
