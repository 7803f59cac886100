"""Real virtual environments, with a package made here: nothing is downloaded."""

import subprocess
import zipfile
from pathlib import Path

import pytest
from bertron_loadtest import environments
from bertron_loadtest.environments import make_environment, torch_install, versions_in

TIMEOUT_S = 120


def make_wheel(folder: Path, version: str) -> str:
    path = folder / f"tiny_peer-{version}-py3-none-any.whl"
    info = f"tiny_peer-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tiny_peer.py", f"version = {version!r}\n")
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny_peer\nVersion: {version}\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return str(path)


def test_an_environment_is_made_once_and_again_for_other_packages(tmp_path):
    folder = tmp_path / "venv"
    first, second = make_wheel(tmp_path, "1.0"), make_wheel(tmp_path, "2.0")

    python = make_environment(folder, [["--no-index", first]], timeout_s=TIMEOUT_S)
    assert versions_in(folder, ["tiny-peer", "absent"]) == {"tiny-peer": "1.0"}
    said = subprocess.run(
        [python, "-c", "import tiny_peer; print(tiny_peer.version)"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
    )
    assert said.stdout == "1.0\n"

    made = python.lstat().st_mtime_ns
    make_environment(folder, [["--no-index", first]], timeout_s=TIMEOUT_S)
    assert python.lstat().st_mtime_ns == made

    make_environment(folder, [["--no-index", second]], timeout_s=TIMEOUT_S)
    assert versions_in(folder, ["tiny_peer"]) == {"tiny_peer": "2.0"}

    missing = [["--no-index", second], ["--no-index", "there-is-no-such-package"]]
    with pytest.raises(OSError, match="there-is-no-such-package"):
        make_environment(folder, missing, timeout_s=TIMEOUT_S)
    assert not (folder / ".installed").exists()  # so that the next time makes it anew


def test_an_environment_has_a_deadline(tmp_path):
    with pytest.raises(TimeoutError, match="had not ended after 0 s"):
        make_environment(tmp_path / "venv", [], timeout_s=0.001)


@pytest.mark.parametrize(
    ("installed", "wanted"),
    [
        ("2.13.0+cpu", "torch==2.13.0+cpu"),
        ("2.13.0", "torch==2.13.0"),
        ("2.12.0+cpu", "torch==2.13.0"),
    ],
)
def test_torch_is_the_pinned_one_in_our_own_build(monkeypatch, tmp_path, installed, wanted):
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("tokenizers==0.23.3\ntorch==2.13.0\ntorchless==1\n")
    monkeypatch.setattr(environments, "CONSTRAINTS", constraints)
    monkeypatch.setattr("importlib.metadata.version", lambda _name: installed)
    monkeypatch.delenv("TORCH_INDEX_URL", raising=False)
    assert torch_install() == [wanted]
    monkeypatch.setenv("TORCH_INDEX_URL", "https://torch.example/cpu")
    assert torch_install() == [wanted, "--extra-index-url", "https://torch.example/cpu"]
