"""The configurations in the repository are the templates of every other model's."""

import pytest
from bertron_torchscript.repository import STEPS, model_names, render_config, template_directory

DEFAULT = {
    "max_tokens_per_text": "256",
    "dtype": "float32",
    "pooling": "mean",
    "normalize": "true",
    "gpu_dtype": "float16",
}
OTHER = {
    "max_tokens_per_text": "512",
    "dtype": "int8",
    "pooling": "cls",
    "normalize": "false",
    "gpu_dtype": "bfloat16",
}


@pytest.mark.parametrize("step", STEPS)
def test_the_default_model_is_rendered_as_it_stands(step):
    """So that exporting the demo's model changes no file that git knows."""
    template = (template_directory() / step / "config.pbtxt").read_text()
    rendered = render_config(
        template, names=model_names(None), embedding_size=384, parameters=DEFAULT
    )
    assert rendered == template


@pytest.mark.parametrize("step", STEPS)
def test_a_named_model_takes_nothing_from_the_default_one(step):
    template = (template_directory() / step / "config.pbtxt").read_text()
    rendered = render_config(
        template, names=model_names("news"), embedding_size=768, parameters=OTHER
    )
    for name in STEPS:
        assert f'name: "{name}"' not in rendered
    assert "[ 384 ]" not in rendered
    for value in DEFAULT.values():
        assert f'"{value}"' not in rendered


def test_the_ensemble_publishes_what_the_model_is():
    template = (template_directory() / "text_embedding" / "config.pbtxt").read_text()
    rendered = render_config(
        template, names=model_names("news"), embedding_size=768, parameters=OTHER
    )
    for key in ("max_tokens_per_text", "dtype", "pooling", "normalize"):
        value = OTHER[key]
        assert f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}' in rendered


def test_the_default_name_written_out_is_the_default():
    assert model_names("text_embedding") == model_names(None) == {step: step for step in STEPS}
