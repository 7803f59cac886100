"""The configurations in the repository are the templates of every other model's."""

import pytest
from bertron_torchscript.repository import STEPS, model_names, render_config, template_directory


@pytest.mark.parametrize("step", STEPS)
def test_the_default_model_is_rendered_as_it_stands(step):
    """So that exporting the demo's model changes no file that git knows."""
    template = (template_directory() / step / "config.pbtxt").read_text()
    rendered = render_config(
        template, names=model_names(None), embedding_size=384, max_tokens_per_text=256
    )
    assert rendered == template


@pytest.mark.parametrize("step", STEPS)
def test_a_named_model_takes_nothing_from_the_default_one(step):
    template = (template_directory() / step / "config.pbtxt").read_text()
    rendered = render_config(
        template, names=model_names("news"), embedding_size=768, max_tokens_per_text=512
    )
    for name in STEPS:
        assert f'name: "{name}"' not in rendered
    assert "[ 384 ]" not in rendered
    assert '"256"' not in rendered
