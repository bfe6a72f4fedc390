"""Embeddings from a file, for the methods with a conditioner."""

import jax
import numpy as np
import pytest

from fdjax.config import derive_config
from fdjax.run import registry
from fdjax.run.runner import Runner

CONFIGS = registry.runner_configs()
TEXT = "self-forcing-wan2.1-t2v-1.3b-taehv"
EMBEDDED_IMAGE = "wan21-i2v-14b-480p"
BARE_IMAGE = next(slug for slug in CONFIGS if slug.startswith("lingbot"))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A file of each, from a run without a prompt's file or a picture of one's own."""
    folder = tmp_path_factory.mktemp("embeddings")
    for slug in (TEXT, EMBEDDED_IMAGE, BARE_IMAGE):
        tiny = CONFIGS[slug].tiny()
        derive_config(tiny, save_embeddings_path=folder / slug).setup().run()
    jax.clear_caches()
    return folder


@pytest.mark.parametrize("slug", [TEXT, EMBEDDED_IMAGE, BARE_IMAGE])
def test_neither_prompt_nor_picture_is_read_again(slug, kept, tmp_path, monkeypatch):
    tiny = CONFIGS[slug].tiny()
    runner = tiny.setup()
    inputs = runner.prepare()
    parts = runner.pipeline.conditioner.parts
    params = runner.pipeline.init_params(jax.random.key(0), only=list(parts))
    want = runner.encode_conditions(params, inputs)
    monkeypatch.setattr(Runner, "read_image", lambda *_: pytest.fail("picture read"))
    ready = derive_config(
        tiny, embeddings_path=kept / slug, prompt="", output_dir=tmp_path
    )
    got = ready.setup().prepare().conditions
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert (got.image is None) == (slug == TEXT)


def test_a_file_without_a_picture_does_not_start_an_image_method(kept, tmp_path):
    ready = derive_config(
        CONFIGS[BARE_IMAGE].tiny(), embeddings_path=kept / TEXT, output_dir=tmp_path
    )
    with pytest.raises(ValueError, match="image"):
        ready.setup().prepare()


def test_a_file_of_a_method_with_other_encoders_is_refused(kept, tmp_path):
    ready = derive_config(
        CONFIGS[TEXT].tiny(), embeddings_path=kept / EMBEDDED_IMAGE, output_dir=tmp_path
    )
    with pytest.raises(ValueError, match="another encoder or of other settings"):
        ready.setup().prepare()
