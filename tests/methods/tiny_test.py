"""`--tiny` for every method: small enough for anyone, by the same path."""

import jax
import pytest

from fdjax.config import check_config, derive_config
from fdjax.run import media, memory, registry

CONFIGS = registry.runner_configs()
RUN = ("self-forcing-wan2.1-t2v-1.3b-taehv", "wan21-i2v-14b-480p")
"""One text-to-video and one image-to-video method of the Wan family."""


@pytest.mark.parametrize("slug", CONFIGS)
def test_every_method_is_small_and_needs_no_file(slug, tmp_path):
    config = derive_config(CONFIGS[slug].tiny(), output_dir=str(tmp_path))
    check_config(config)
    assert config.random_weights
    assert type(config) is type(CONFIGS[slug])
    runner = config.setup()
    shapes = [part.param_shapes() for part in runner.pipeline.components.values()]
    assert memory.num_bytes(shapes) < 20e6
    inputs = runner.prepare()
    assert runner.num_chunks(inputs) <= 2


@pytest.mark.parametrize("slug", RUN)
def test_the_whole_path_runs(slug, tmp_path):
    config = derive_config(CONFIGS[slug].tiny(), output_dir=str(tmp_path))
    result = config.setup().run()
    assert "random-weights" in result.output.name
    assert media.read_video(result.output).shape[0] == result.num_frames > 1
    jax.clear_caches()
