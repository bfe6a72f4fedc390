"""Self-Forcing: published values, contract, and whole runs of tiny networks."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from fdjax import testing
from fdjax.config import derive_config, from_json, to_json
from fdjax.contract.conditioner import Conditions
from fdjax.run import media, plugins
from fdjax_models.methods.self_forcing.config import RUNNER_CONFIGS
from tests.networks.wan_dit.tiny_methods import HEIGHT, WIDTH, shrink

BASE = "self-forcing-wan2.1-t2v-1.3b"


def test_published_values():
    known = plugins.known_classes()
    transformers = {
        slug.removeprefix(BASE): config.pipeline.diffusion_model.transformer
        for slug, config in RUNNER_CONFIGS.items()
    }
    assert set(transformers) == {"", "-taehv", "-sink5-window7-rerope"}
    sizes = {
        name: (t.len_t, t.window_size_t, t.sink_size_t, t.apply_rope_before_kvcache)
        for name, t in transformers.items()
    }
    assert sizes == {
        "": (3, 21, 0, True),
        "-taehv": (3, 21, 0, True),
        "-sink5-window7-rerope": (3, 7, 5, False),
    }
    for slug, config in RUNNER_CONFIGS.items():
        assert config.runner_name == config.pipeline.name == slug
        assert (config.pixel_height, config.pixel_width, config.fps) == (480, 832, 16)
        relative = slug.endswith("rerope")
        assert config.total_blocks == (80 if relative else 60)
        assert config.pipeline.diffusion_model.seed == (0 if relative else 42)
        assert config.pipeline.diffusion_model.transformer.guidance_scale == 1
        assert config.pipeline.diffusion_model.scheduler.shift == 8
        name = config.pipeline.decoder.checkpoint_path.rpartition("/")[2]
        light = slug.endswith("taehv")
        assert name == ("lighttaew2_1.pth" if light else "Wan2.1_VAE.pth")
        timesteps = config.pipeline.diffusion_model.scheduler.setup().steps.timestep
        want = [1000, 960, 888.8889160, 727.2727661]
        np.testing.assert_allclose(timesteps, want, rtol=1e-7)
        text = to_json(config, classes=known)
        assert from_json(text, classes=known) == config


@pytest.mark.parametrize("slug", RUNNER_CONFIGS)
def test_run(slug, tmp_path):
    config = shrink(RUNNER_CONFIGS[slug], tmp_path, total_blocks=3, prompt="a boat")
    result = config.setup().run()
    assert result.num_frames == 9 + 2 * 12
    video = media.read_video(result.output)
    assert video.shape == (33, HEIGHT, WIDTH, 3)
    assert video.std() > 1
    written = json.loads((tmp_path / f"{slug}-random-weights.config.json").read_text())
    assert written["prompt"] == "a boat"


def test_prompt_and_seed_matter(tmp_path):
    config = shrink(RUNNER_CONFIGS[BASE], tmp_path, total_blocks=1, prompt="a boat")

    def frames(**changes):
        return media.read_video(
            dataclasses.replace(config, **changes).setup().run().output
        )

    first = frames()
    np.testing.assert_array_equal(first, frames())
    assert np.any(first != frames(prompt="zzz"))
    assert np.any(first != frames(seed=5))


def test_prompt_file(tmp_path):
    (tmp_path / "prompt.txt").write_text("\n a boat \n")
    config = shrink(RUNNER_CONFIGS[BASE], tmp_path, prompt=str(tmp_path / "prompt.txt"))
    assert config.setup().read_inputs().text == ("a boat",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixel_height": 40}, "pixel_height must be a multiple of 16 and"),
        ({"pixel_width": 50}, "multiples of 8"),
        ({"prompt": " "}, "prompt must be a text"),
        ({"prompt": "nowhere.txt"}, "prompt file nowhere.txt does not exist"),
    ],
)
def test_bad_input(tmp_path, changes, message):
    config = dataclasses.replace(shrink(RUNNER_CONFIGS[BASE], tmp_path), **changes)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        config.setup().prepare()


def test_checkpoint_path_is_the_transformers(tmp_path):
    config = shrink(RUNNER_CONFIGS[BASE], tmp_path, checkpoint_path="mine.pt")
    config = dataclasses.replace(config, random_weights=False)
    pipeline = config.setup().pipeline.config
    assert pipeline.diffusion_model.transformer.checkpoint_path == "mine.pt"
    assert pipeline.conditioner == config.pipeline.conditioner
    assert pipeline.decoder == config.pipeline.decoder


def _conditions(seed):
    text = jax.random.normal(jax.random.key(seed), (2, 8, 24))
    return Conditions(text=text)


def _initialize(pipeline, params, key):
    return pipeline.initialize_cache(
        params, conditions=_conditions(1), pixel_height=16, pixel_width=32, key=key
    )


def _contract_case(slug, transformer):
    runner = shrink(RUNNER_CONFIGS[slug], "outputs")
    # The autoencoder's own tests cover it; the smaller decoder compiles faster.
    decoder = shrink(RUNNER_CONFIGS[f"{BASE}-taehv"], "outputs").pipeline.decoder
    config = derive_config(
        runner.pipeline,
        conditioner=None,
        decoder=decoder,
        diffusion_model={"transformer": transformer | {"network": {"num_layers": 1}}},
    )
    return testing.PipelineCase(
        config=config,
        initialize=_initialize,
        num_chunks=5,
        new_conditions=lambda pipeline, params: _conditions(2),
    )


# The network's own tests have the check that takes long.
LONG = ("check_without_jit", "check_sessions", "check_rollout")
CHECKS = [check for check in testing.CHECKS if check.__name__ not in LONG]


# Of relative time, a sink and guidance, those of the Wan transformer's tests hold.
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    check(_contract_case(BASE, {"window_size_t": 6}))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract_of_a_cache_in_8_bits(check):
    changes = {"window_size_t": 6, "kv_dtype": "float8_e4m3fn"}
    check(_contract_case(BASE, changes))
