"""Causal Wan 2.2: its published values, two experts' contracts, runs, bad input."""

import dataclasses

import jax
import numpy as np
import pytest

from fdjax import checkpoint, testing
from fdjax.config import derive_config, from_json, to_json
from fdjax.contract.component import leaves
from fdjax.contract.conditioner import Conditions
from fdjax.run import media, plugins
from fdjax_convert import methods
from fdjax_models.methods.causal_wan22.config import RUNNER_CONFIGS
from tests.networks.wan_dit.tiny_methods import HEIGHT, WIDTH, shrink

SLUG = "fastvideo-causal-wan2.2-t2v-14b"
CONFIG = RUNNER_CONFIGS[SLUG]


def test_published_values():
    known = plugins.known_classes()
    model = CONFIG.pipeline.diffusion_model
    transformer = model.transformer
    sizes = transformer.len_t, transformer.window_size_t, transformer.sink_size_t
    assert sizes == (3, 21, 0)
    assert (CONFIG.pixel_height, CONFIG.pixel_width, CONFIG.fps) == (480, 832, 16)
    assert model.seed == 42
    component = transformer.setup()
    timesteps = model.scheduler.setup().steps.timestep
    want = [1000, 965.9092, 921.0526, 859.375, 729.1667, 654.7619, 555.5556, 416.6667]
    np.testing.assert_allclose(timesteps, want, rtol=1e-6)
    # Three steps of the one, five of the other.
    assert [first for first, _ in component.segments(timesteps)] == [0, 3]
    shapes = jax.tree.leaves(component.param_shapes())
    assert sum(leaf.size for leaf in shapes) == 2 * 14_288_491_584
    text = to_json(CONFIG, classes=known)
    assert from_json(text, classes=known) == CONFIG


def test_a_boundary_is_compared_as_the_network_is_told():
    transformer = CONFIG.pipeline.diffusion_model.transformer
    # bfloat16 has multiples of 4 here: the boundary is 876, and so is 877.
    timesteps = np.array([1000, 877, 100], np.float32)
    assert [n for n, _ in transformer.setup().segments(timesteps)] == [0, 1]
    network = dataclasses.replace(transformer.network, dtype="float32")
    exact = dataclasses.replace(transformer, network=network).setup()
    assert [n for n, _ in exact.segments(timesteps)] == [0, 2]
    # All steps may be one expert's.
    for end, name in ((900, "high_noise"), (100, "low_noise")):
        [(first, turn)] = exact.segments(np.array([end, end - 1], np.float32))
        assert (first, turn.name) == (0, name)
    with pytest.raises(ValueError, match="cross the boundary once"):
        exact.segments(np.array([1000, 500, 900], np.float32))


def test_the_experts_have_checkpoints_of_their_own():
    parts = leaves(CONFIG.pipeline.setup().components)
    names = ("transformer/high_noise", "transformer/low_noise")
    folders = [parts[name].checkpoint_path.split("/")[-2] for name in names]
    assert folders == ["transformer", "transformer_2"]
    found = {candidate.name for candidate in methods.components(SLUG)}
    assert set(names) < found


def test_both_are_read_and_placed(tmp_path):
    config = shrink(CONFIG, tmp_path).pipeline.diffusion_model.transformer
    params = config.setup().init_params(jax.random.key(0))
    paths = {}
    for name, part in config.setup().parts.items():
        paths[name] = str(tmp_path / f"{name}.safetensors")
        checkpoint.save(paths[name], params[name], component=part)
    config = dataclasses.replace(
        config,
        checkpoint_path=paths["high_noise"],
        low_noise_checkpoint_path=paths["low_noise"],
    )
    read = checkpoint.load_params(config.setup())
    jax.tree.map(np.testing.assert_array_equal, read, params)
    with pytest.raises(ValueError, match="high_noise"):
        checkpoint.load_params(config.setup(), sharding={"high": None})
    missing = dataclasses.replace(config, low_noise_checkpoint_path=None)
    with pytest.raises(ValueError, match="names no checkpoint"):
        checkpoint.load_params(missing.setup())


def test_converted_experts_remember_which_they_are(tmp_path):
    """Exchanged ones are refused before an encoder or a weight is read."""
    config = dataclasses.replace(
        shrink(CONFIG, tmp_path, prompt="a train"), random_weights=False
    )
    pipeline = config.pipeline
    transformer = pipeline.diffusion_model.transformer
    paths = {"high": str(tmp_path / "a"), "low": str(tmp_path / "b")}
    for name, part in zip(paths, transformer.setup().parts.values(), strict=True):
        params = part.init_params(jax.random.key(0))
        made_of = {"path": f"/hub/{name}_noise_model/x.safetensors"}
        checkpoint.save(paths[name], params, component=part, source=made_of)

    def given(high, low):
        changes = {"checkpoint_path": high, "low_noise_checkpoint_path": low}
        return dataclasses.replace(transformer, **changes)

    given(paths["high"], paths["low"]).setup().check_files()
    exchanged = given(paths["low"], paths["high"])
    message = "/hub/low_noise_model/x.safetensors is in a folder low_noise_model"
    with pytest.raises(ValueError, match=message):
        checkpoint.load_params(exchanged.setup())
    # The other parts' checkpoints are not there: they are not looked for.
    wrong = derive_config(
        config, pipeline={"diffusion_model": {"transformer": exchanged}}
    )
    here = dict.fromkeys(("decoder", "conditioner"))
    wrong = derive_config(wrong, pipeline={**here, "spatial_compression_ratio": 8})
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(wrong, prompt="").setup().prepare()


def test_run(tmp_path):
    config = shrink(CONFIG, tmp_path, total_blocks=3, prompt="a train")
    result = config.setup().run()
    assert result.num_frames == 9 + 2 * 12
    assert media.read_video(result.output).shape == (33, HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"low_noise_checkpoint_path": "a/transformer/x"}, "must name two"),
        ({"checkpoint_path": "a/low_noise_model/x"}, "Change the two paths over"),
        ({"low_noise_checkpoint_path": "a/high_noise/x"}, "Change the two paths over"),
        ({"boundary": -1.0}, "timestep in"),
        ({"boundary": float("nan")}, "boundary"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes, message):
    transformer = CONFIG.pipeline.diffusion_model.transformer
    changes = {"checkpoint_path": "a/transformer/x"} | changes
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(transformer, **changes)


def _conditions(seed):
    return Conditions(text=jax.random.normal(jax.random.key(seed), (2, 8, 24)))


def _initialize(pipeline, params, key):
    return pipeline.initialize_cache(
        params, conditions=_conditions(1), pixel_height=16, pixel_width=32, key=key
    )


# Its networks are Wan's, whose tests have the check that takes long.
CHECKS = [check for check in testing.CHECKS if check.__name__ != "check_without_jit"]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    changes = {"window_size_t": 2, "len_t": 1, "network": {"num_layers": 1}}
    config = derive_config(
        shrink(CONFIG, "outputs").pipeline,
        conditioner=None,
        decoder=None,
        spatial_compression_ratio=8,
        diffusion_model={
            "transformer": changes,
            # A step of the one, two of the other.
            "scheduler": {
                "num_inference_steps": 3,
                "denoising_timesteps": (1000, 500, 200),
            },
        },
    )
    case = testing.PipelineCase(
        config=config,
        initialize=_initialize,
        num_chunks=4,
        new_conditions=lambda pipeline, params: _conditions(2),
    )
    check(case)
