"""The weights in the package: they load, fit, and do what keys and images say."""

import importlib.resources

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax.engine import stages as pipeline_stages
from fdjax_models.methods.maze_world import config, controls
from fdjax_models.methods.maze_world.evaluation import measures, rollouts

MAX_BYTES = 16_000_000
LEFT, RIGHT = "a*8", "d*8"


@pytest.fixture(scope="module")
def walks() -> rollouts.Walks:
    keys = np.stack([controls.parse_controls(turn) for turn in (LEFT, RIGHT)])
    made = [
        rollouts.simulate(
            range(1), 8, controls=turn, styles=np.array([[0, 4, 0, 0]], np.int32)
        )
        for turn in keys
    ]
    return rollouts.Walks(
        video=np.concatenate([walk.video for walk in made]),
        controls=keys.astype(np.float32),
        styles=np.concatenate([walk.styles for walk in made]),
    )


@pytest.fixture(scope="module")
def rollout(walks):
    """Video of a left and a right turn from one image, and compilations it took."""
    before = pipeline_stages.diffuse_in_place._cache_size()
    pipeline = rollouts.pipeline_with()
    params = pipeline.load_params()
    video = rollouts.generate(
        pipeline, params, walks.prompts, walks.controls, walks.video[:, 0]
    )
    return video, pipeline_stages.diffuse_in_place._cache_size() - before


def test_the_weights_are_small_enough_to_ship():
    folder = importlib.resources.files("fdjax_models.methods.maze_world") / "weights"
    files = [path for path in folder.iterdir() if path.name.endswith(".safetensors")]
    assert len(files) == len(config.PIPELINE.setup().components)
    assert sum(len(path.read_bytes()) for path in files) <= MAX_BYTES


def test_the_weights_are_finite_and_trained():
    params = config.PIPELINE.setup().load_params()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    # The head begins at zero.
    assert float(jnp.abs(params["transformer"]["head"]["proj"]["kernel"]).mean()) > 1e-3


def test_the_first_frame_is_the_start_image(rollout, walks):
    video, _ = rollout
    assert video.shape == walks.video.shape
    assert (measures.psnr(video[:, 0], walks.video[:, 0]) > 22).all()


def test_the_view_follows_the_keys(rollout):
    video, _ = rollout
    left, right = (np.median(measures.yaw_rates(clip[1:])) for clip in video)
    assert left > 0.05
    assert right < -0.05


def test_what_is_seen_next_resembles_the_simulator(rollout, walks):
    """Better than a still image of the start would."""
    video, _ = rollout
    made = measures.psnr(video[:, 4], walks.video[:, 4])
    still = measures.psnr(walks.video[:, 0], walks.video[:, 4])
    assert (made > still + 2).all()


def test_loaded_weights_compile_the_network_once(rollout):
    assert rollout[1] == 1
