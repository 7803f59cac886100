from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from bertron_server import plain_paths
from bertron_server.errors import RepositoryError, TritonServerError
from bertron_server.plain_paths import PlainPaths
from bertron_server.server import TritonServer, model_names

# What a folder may be called, and a line of shell would not take as it stands.
AWKWARD = "my models; ü $x 'n'"


def test_a_plain_path_is_itself(tmp_path: Path) -> None:
    paths = PlainPaths()
    assert paths.of(tmp_path / "models-1.0_a") == tmp_path / "models-1.0_a"
    assert paths.of(Path("models")) == Path.cwd() / "models"
    paths.remove()


def test_another_is_reached_by_a_link_until_it_is_removed(tmp_path: Path) -> None:
    awkward = tmp_path / AWKWARD
    awkward.mkdir()
    (awkward / "file").write_text("here")
    paths = PlainPaths()
    link = paths.of(awkward)
    assert plain_paths.PLAIN.fullmatch(str(link))
    assert (link / "file").read_text() == "here"
    assert paths.of(awkward) == link
    assert paths.of(tmp_path / f"{AWKWARD}2") != link
    paths.remove()
    assert not link.parent.exists()
    assert (awkward / "file").read_text() == "here"
    paths.remove()


def test_without_a_place_for_links_the_path_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    assert PlainPaths().of(Path("/plain")) == Path("/plain")
    with pytest.raises(TritonServerError, match=r"my models; .* no link to it .*: No usable temp"):
        PlainPaths().of(tmp_path / AWKWARD)


def test_a_directory_for_temporary_files_may_be_awkward_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / AWKWARD))
    monkeypatch.setattr(plain_paths, "LINK_DIRECTORIES", (str(tmp_path),))
    paths = PlainPaths()
    assert paths.of(tmp_path / AWKWARD).parent.parent == tmp_path
    paths.remove()


def test_a_repository_and_a_cache_of_any_name_are_served(
    tmp_path: Path, add_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / AWKWARD / "cache"))
    repository = add_model(tmp_path / AWKWARD / "models", "echo")
    before = set(Path(tempfile.gettempdir()).glob("bertron-*"))
    with TritonServer(repository) as server:
        assert server.get("/v2/models/echo/ready") == b""
    assert set(Path(tempfile.gettempdir()).glob("bertron-*")) == before
    assert (repository / "echo" / "config.pbtxt").is_file()


@pytest.mark.parametrize("name", ["my model", "möbel", "x;y"])
def test_a_model_of_such_a_name_is_refused(
    tmp_path: Path, add_model: Callable[..., Path], name: str
) -> None:
    repository = add_model(tmp_path / "models", "echo")
    shutil.copytree(repository / "echo", repository / name)
    with pytest.raises(RepositoryError, match=f"the model '{name}' in .*cannot be served: a name"):
        model_names(repository)
