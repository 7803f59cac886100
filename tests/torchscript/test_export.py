"""From a checkpoint to a model repository: all of it right, or nothing of it there."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from bertron_kernels import implementation
from bertron_torchscript import export as export_module
from bertron_torchscript import verification
from bertron_torchscript.bert import LINEARS
from bertron_torchscript.errors import ExportError, ManifestError
from bertron_torchscript.export import export
from bertron_torchscript.manifest import FORMAT, checked_file, read_manifest, sha256_of
from bertron_torchscript.verification import REQUIRED_COSINE, load_tokenizer
from safetensors.torch import load_file, save_file
from tiny_checkpoints import ARCHITECTURES, make_checkpoint


@pytest.fixture
def source(tmp_path):
    return make_checkpoint(tmp_path / "source")


def files_under(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_every_architecture_passes_its_own_verification(architecture, dtype, tmp_path):
    source = make_checkpoint(tmp_path / "source", architecture)
    if dtype == "int8" and implementation("cpu") == "eager":
        with pytest.raises(ExportError, match=r"needs the CPU library: .* bertron_kernels\.build"):
            export(str(source), tmp_path / "models", dtype=dtype)
        assert not (tmp_path / "models").exists()
        return
    manifest = export(str(source), tmp_path / "models", dtype=dtype)
    assert manifest.verification.min_cosine >= REQUIRED_COSINE[dtype]
    assert manifest.verification.texts >= 20
    saved = torch.jit.load(tmp_path / "models/bert/1/model.pt")
    weights = [getattr(layer, f"{n}_weight") for layer in saved.layers.children() for n in LINEARS]
    assert getattr(torch, dtype) in {weight.dtype for weight in weights}
    assert saved.word_embeddings.dtype == torch.float32


def test_the_repository_is_complete_and_configured_for_the_model(source, tmp_path):
    options = {"max_tokens": 33, "dtype": "bfloat16", "pooling": "cls", "normalize": False}
    export(str(source), tmp_path / "models", **options)
    models = tmp_path / "models"
    assert files_under(models) == {
        "tokenizer/config.pbtxt",
        "tokenizer/1/model.py",
        "tokenizer/1/tokenizer.json",
        "tokenizer/1/manifest.json",
        "bert/config.pbtxt",
        "bert/1/model.py",
        "bert/1/model.pt",
        "bert/1/manifest.json",
        "text_embedding/config.pbtxt",
    }
    assert (models / "text_embedding" / "1").is_dir()
    config = (models / "text_embedding" / "config.pbtxt").read_text()
    assert "TYPE_FP32 dims: [ 48 ]" in config
    assert 'key: "max_tokens_per_text" value { string_value: "33" }' in config
    assert 'key: "dtype" value { string_value: "bfloat16" }' in config
    assert 'key: "pooling" value { string_value: "cls" }' in config
    assert 'key: "normalize" value { string_value: "false" }' in config


@pytest.mark.parametrize(
    ("dtype", "on_gpu"),
    [(None, "float16"), ("float32", "float32"), ("bfloat16", "bfloat16"), ("float16", "float16")],
)
def test_only_a_dtype_that_nobody_chose_becomes_float16_on_a_gpu(source, tmp_path, dtype, on_gpu):
    manifest = export(str(source), tmp_path / "models", dtype=dtype)
    assert manifest.dtype == (dtype or "float32")
    config = (tmp_path / "models" / "bert" / "config.pbtxt").read_text()
    assert f'key: "gpu_dtype" value {{ string_value: "{on_gpu}" }}' in config


def test_a_named_model_stands_beside_the_default_one(source, tmp_path):
    models = tmp_path / "models"
    export(str(source), models)
    before = {path: sha256_of(models / path) for path in files_under(models)}
    export(str(source), models, name="reviews")
    assert {path: sha256_of(models / path) for path in before} == before
    config = (models / "reviews" / "config.pbtxt").read_text()
    assert 'model_name: "reviews_tokenizer"' in config
    assert 'model_name: "reviews_bert"' in config
    checked_file(models / "reviews_bert" / "1", "model.pt")


def test_layers_above_the_pooling_layer_are_pruned(source, tmp_path):
    manifest = export(str(source), tmp_path / "models", pooling_layer=-2)
    assert (manifest.num_layers, manifest.pruned_layers) == (1, 1)
    with pytest.raises(ExportError, match=r"--pooling-layer -4 is outside -3\.\.2"):
        export(str(source), tmp_path / "models", pooling_layer=-4)


def test_the_manifest_tells_a_damaged_file(source, tmp_path):
    export(str(source), tmp_path / "models")
    directory = tmp_path / "models" / "bert" / "1"
    manifest = read_manifest(directory)
    assert manifest.source_sha256["model.safetensors"] == sha256_of(source / "model.safetensors")
    with (directory / "model.pt").open("r+b") as file:
        file.seek(1000)
        file.write(b"x")
    with pytest.raises(ManifestError, match=r"model\.pt has sha256 .*, its manifest says"):
        checked_file(directory, "model.pt")
    (directory / "manifest.json").write_text(json.dumps({"format": 0}))
    with pytest.raises(
        ManifestError, match=f"format 0, this version reads {FORMAT}: run `bertron export`"
    ):
        checked_file(directory, "model.pt")


def test_a_mismatch_with_transformers_leaves_nothing_behind(source, tmp_path, monkeypatch):
    """The check must be able to fail: here the reference is given another model's weights."""
    other = make_checkpoint(tmp_path / "other", intermediate_size=80)
    tensors = load_file(other / "model.safetensors")
    name = "encoder.layer.1.output.dense.bias"
    save_file({**tensors, name: tensors[name] * -3}, other / "model.safetensors", {"format": "pt"})
    original = verification._transformers_embeddings

    def from_other(checkpoint, token_ids, hidden_state):
        import dataclasses

        return original(dataclasses.replace(checkpoint, directory=other), token_ids, hidden_state)

    monkeypatch.setattr(verification, "_transformers_embeddings", from_other)
    with pytest.raises(ExportError, match=r"against transformers: cosine 0\.\d+ for text \d+"):
        export(str(source), tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_a_failed_export_leaves_the_previous_one_as_it_was(source, tmp_path):
    models = tmp_path / "models"
    export(str(source), models)
    before = {path: sha256_of(models / path) for path in files_under(models)}
    (source / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ExportError, match="not a readable safetensors"):
        export(str(source), models)
    assert {path: sha256_of(models / path) for path in files_under(models)} == before


def test_a_tokenizer_of_another_model_is_refused(source, tmp_path):
    other = make_checkpoint(tmp_path / "other", vocab_size=20)
    shutil.copy(source / "tokenizer.json", other / "tokenizer.json")
    with pytest.raises(ExportError, match=r"gives token \d+, the model's vocabulary has 20"):
        export(str(other), tmp_path / "models")


def test_weights_that_do_not_fit_the_configuration_are_refused(source, tmp_path):
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "intermediate_size": 81}))
    with pytest.raises(ExportError, match=r"does not fit the config\.json beside it"):
        export(str(source), tmp_path / "models")


def test_a_value_that_float16_cannot_hold_is_named(source, tmp_path):
    tensors = load_file(source / "model.safetensors")
    name = "encoder.layer.0.intermediate.dense.bias"
    tensors[name] = tensors[name] + 70_000.0  # beyond float16's largest number
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ExportError,
        match=r"intermediate_bias has the value 7[\d.]+, torch.float16 holds at most 65504",
    ):
        export(str(source), tmp_path / "models", dtype="float16")


def test_an_unexpected_hash_stops_the_command_with_one_line(source, tmp_path):
    command = [sys.executable, "-m", "bertron_server.cli", "export", str(source), "--sha256", "00"]
    command += ["--model-repository", str(tmp_path / "models")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("bertron export: ")
    assert last.endswith("expected 00")
    assert not (tmp_path / "models").exists()


def test_two_exports_at_a_time_leave_each_other_alone(source, tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "SWEPT_AFTER_S", 0)
    place = tmp_path / "place"
    with export_module._staging(place / "models") as first:
        with export_module._staging(place / "models") as second:
            assert first.is_dir()
            assert second.is_dir()
            assert list((place / "models").iterdir()) == []
        assert first.is_dir()
    assert list(place.iterdir()) == []


def test_where_the_parent_is_not_ours_the_repository_itself_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(export_module.os, "access", lambda *_: False)
    with export_module._staging(tmp_path / "models") as staging:
        assert staging.parent == tmp_path / "models"


@pytest.mark.parametrize(
    "name", ["", "../x", "n/m", "a b", "x;y", "ü", ".hidden", "-x", "x" * 101, "a\nb"]
)
def test_a_name_that_no_model_can_have_is_refused(source, tmp_path, name):
    with pytest.raises(ExportError, match="cannot be a model's: at most 100 ASCII letters"):
        export(str(source), tmp_path / "models", name=name)
    assert not (tmp_path / "models").exists()


def test_a_name_never_takes_the_place_of_another_model(source, tmp_path):
    repository = tmp_path / "models"
    export(str(source), repository)
    export(str(source), repository, name="news")
    before = {path: path.read_bytes() for path in repository.rglob("config.pbtxt")}
    for name, taken in [("bert", "bert"), ("news_tokenizer", "news_tokenizer")]:
        with pytest.raises(ExportError, match=f"{taken} is a model that an ensemble needs already"):
            export(str(source), repository, name=name)
    assert {path: path.read_bytes() for path in repository.rglob("config.pbtxt")} == before
    export(str(source), repository, name="news")  # its own place it may take
    export(str(source), tmp_path / "others", name="legal_bert")
    with pytest.raises(ExportError, match=r"legal_bert is an ensemble already.* than legal"):
        export(str(source), tmp_path / "others", name="legal")


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_the_chosen_tokenizer_is_the_one_that_is_compared_and_written(source, tmp_path, dtype):
    if dtype == "int8" and implementation("cpu") == "eager":
        pytest.skip("int8 needs the CPU library")
    vocabulary = json.loads((source / "tokenizer.json").read_text())["model"]["vocab"]
    lines = sorted(vocabulary, key=vocabulary.__getitem__)
    (source / "vocab.txt").write_text("\n".join(lines) + "\n")
    (source / "tokenizer.json").unlink()
    manifest = export(str(source), tmp_path / "models", dtype=dtype, tokenizer="transformers")
    assert {"config.json", "vocab.txt"} < manifest.source_sha256.keys()
    assert "tokenizer.json" not in manifest.source_sha256
    path, _ = checked_file(tmp_path / "models" / "tokenizer" / "1", "tokenizer.json")
    assert load_tokenizer(path).encode("the fox").ids == [
        vocabulary[token] for token in ("[CLS]", "the", "fox", "[SEP]")
    ]


def test_a_file_that_is_chosen_is_not_compared(source, tmp_path):
    (source / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    with pytest.raises(ExportError, match=r"disagree on 'Yes\.'.*--tokenizer file"):
        export(str(source), tmp_path / "models")
    assert not (tmp_path / "models").exists()
    manifest = export(str(source), tmp_path / "models", tokenizer="file")
    expected = sha256_of(source / "tokenizer.json")
    assert manifest.files_sha256["tokenizer.json"] == expected
    assert manifest.source_sha256["tokenizer.json"] == expected


def test_what_the_user_should_know_is_told(source, tmp_path):
    prompts = {"prompts": {"query": "query: "}}
    (source / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    said: list[str] = []
    export(str(source), tmp_path / "models", progress=said.append)
    assert "the checkpoint has prompts (query 'query: '): put it before the text yourself" in str(
        said
    )


def test_what_transformers_cannot_run_is_one_line(source, tmp_path, monkeypatch):
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "chunk_size_feed_forward": 7}))
    with pytest.raises(ExportError, match=r"source: transformers cannot run this checkpoint.* 7$"):
        export(str(source), tmp_path / "models")

    def fails(*_arguments, **_options):
        raise ImportError("it needs the package accelerate\nrun pip")

    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", fails)
    with pytest.raises(ExportError, match=r"cannot be compared: it needs the package accelerate$"):
        export(str(source), tmp_path / "models")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("content", ["{}", '{"version": "1.0", "model": {', ""])
def test_a_damaged_tokenizer_is_named(source, tmp_path, content):
    damaged = shutil.copytree(source, tmp_path / "damaged")
    (damaged / "tokenizer.json").write_text(content)
    with pytest.raises(ExportError, match=r"tokenizer\.json: no tokenizer: "):
        export(str(damaged), tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_what_is_not_an_exports_is_left_alone(source, tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "SWEPT_AFTER_S", 0)
    prefix = export_module._staging_prefix()
    for name in (".export-notes", f"{prefix}diary"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "diary.txt").write_text("mine")
    (tmp_path / f"{prefix}link").symlink_to(tmp_path / ".export-notes")
    export(str(source), tmp_path / "models")
    assert (tmp_path / ".export-notes" / "diary.txt").read_text() == "mine"
    assert (tmp_path / f"{prefix}diary" / "diary.txt").read_text() == "mine"
    assert (tmp_path / f"{prefix}link").is_symlink()


def across_mounts(rename):
    """As between two mounts: a file is not renamed from one directory into another."""

    def refused(source, target, **options):
        if Path(source).parent != Path(target).parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link", str(source))
        return rename(source, target, **options)

    return refused


def test_a_mount_may_lie_between(source, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "rename", across_mounts(os.rename))
    monkeypatch.setattr(os, "replace", across_mounts(os.replace))
    for dtype in ("float32", "bfloat16"):
        export(str(source), tmp_path / "models", dtype=dtype)
        checked_file(tmp_path / "models" / "bert" / "1", "model.pt")
    assert not [path for path in (tmp_path / "models").rglob("*") if path.name.endswith(".new")]


def test_a_disk_that_is_full_leaves_the_previous_export(source, tmp_path, monkeypatch):
    repository = tmp_path / "models"
    export(str(source), repository)
    before = files_under(repository)

    def full(source, _target):
        raise OSError(errno.ENOSPC, "No space left on device", str(source))

    monkeypatch.setattr(shutil, "move", full)
    for name in (None, "another"):
        with pytest.raises(ExportError, match="No space left on device"):
            export(str(source), repository, name=name, dtype="bfloat16")
    assert files_under(repository) == before
    assert {path.name for path in repository.iterdir()} == {"bert", "tokenizer", "text_embedding"}
    assert checked_file(repository / "bert" / "1", "model.pt")[1].dtype == "float32"


def test_a_file_system_without_locks_is_written_too(source, tmp_path, monkeypatch):
    def none(_descriptor, _operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    export(str(source), tmp_path / "models")
    checked_file(tmp_path / "models" / "bert" / "1", "model.pt")
