"""OmniDreams: its published sizes, its runner on tiny networks, its contracts."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from fdjax import testing
from fdjax.checkpoint import param_shapes
from fdjax.config import derive_config
from fdjax.contract.conditioner import Conditions
from fdjax.run import media
from fdjax.testing import behaviour, contract
from fdjax_models.methods.omnidreams.config import (
    FOUR_CAMERAS,
    RUNNER_CONFIGS,
    drivable,
    with_cameras,
)
from tests.methods.omnidreams.maps_test import write_video

SV, PERF = "omnidreams", "omnidreams-perf"
FOLDED = "omnidreams-sv-2steps-chunk4-loc8-pshuffle-lighttae"
MV = "omnidreams-mv-2steps-chunk4-loc8-pshuffle-lighttae"
HEIGHT, WIDTH = 32, 48


def tiny(slug, folder, **changes):
    network = {"network": {"text_len": 200}}
    config = derive_config(
        RUNNER_CONFIGS[slug].tiny(),
        pipeline={
            "conditioner": {"text_encoder": {"max_length": 200}},
            "diffusion_model": {"transformer": network},
        },
    )
    common = {
        "output_dir": str(folder / "out"),
        "pixel_height": HEIGHT,
        "pixel_width": WIDTH,
        "progress": False,
        "prompt": "rain",
    }
    return dataclasses.replace(config, **common | changes)


def test_published_sizes():
    """Of the fact sheet of the reference, after the padding channel was dropped."""
    count = {
        slug: sum(
            np.prod(leaf.shape)
            for leaf in jax.tree.leaves(
                param_shapes(
                    RUNNER_CONFIGS[slug].pipeline.diffusion_model.transformer.setup()
                )
            )
        )
        for slug in (SV, MV)
    }
    padding = 4 * 2048
    assert count == {SV: 2_059_305_984 - padding, MV: 2_568_413_184 - padding}


@pytest.mark.parametrize(
    ("slug", "steps"),
    [
        (SV, (1000, 833.3333)),
        (PERF, (1000, 357.1429)),
        ("omnidreams-sv-2steps-chunk2-loc6-lightvae-lighttae", (1000, 803.5714)),
    ],
)
def test_schedules(slug, steps):
    model = RUNNER_CONFIGS[slug].pipeline.diffusion_model
    found = model.scheduler.setup().steps.timestep
    np.testing.assert_allclose(found, steps, rtol=1e-6)
    assert model.context_noise == 128
    assert model.transformer.skip_finalize_kv_cache == (slug == PERF)


def test_a_recorded_map_is_followed_and_shown_above(tmp_path):
    path = write_video(tmp_path / "map.mp4", 13, size=(HEIGHT, WIDTH))
    config = tiny(SV, tmp_path, hdmap=(str(path),), example=False)
    result = config.setup().run()
    assert result.num_frames == 13
    assert [file.name for file in result.outputs] == [
        "omnidreams-random-weights.mp4",
        "omnidreams-random-weights.comparison.mp4",
    ]
    both = media.read_video(result.outputs[1])
    assert both.shape == (13, 2 * HEIGHT, WIDTH, 3)
    recorded = media.read_video(path).astype(int)
    assert np.abs(both[:, :HEIGHT].astype(int) - recorded).mean() < 4


def test_every_view_has_a_file(tmp_path):
    cameras = FOUR_CAMERAS[:2]
    paths = [
        write_video(tmp_path / f"{name}.mp4", 13, (HEIGHT, WIDTH)) for name in cameras
    ]
    maps = {"hdmap": tuple(map(str, paths)), "example": False}
    config = tiny(MV, tmp_path, total_blocks=1)
    fields = {field.name: getattr(config, field.name) for field in _fields(config)}
    fields |= maps | {"cameras": cameras}
    fields["pipeline"] = with_cameras(config.pipeline, cameras)
    result = type(config)(**fields).setup().run()
    stem = f"{MV}-random-weights"
    names = [f"{stem}.{name}.mp4" for name in (*sorted(cameras), "comparison")]
    assert [file.name for file in result.outputs] == names
    both = media.read_video(result.outputs[-1])
    assert both.shape == (13, 2 * HEIGHT, 2 * WIDTH, 3)


def _fields(config):
    return [field for field in dataclasses.fields(config) if field.name != "_target"]


BAD = {
    "no map": ({"example": False}, "follows one HD map: give hdmap.*got none"),
    "two maps": ({"controls": "w*3"}, "got controls and example"),
    "keys": ({"controls": "x*3", "example": False}, "unknown key.*'x'"),
    "size": ({"pixel_height": 40}, "pixel_height must be a multiple of 16, got 40"),
    "files": ({"hdmap": ("a", "b"), "example": False}, "one file for each.*got 2"),
    "gone": ({"hdmap": ("no.mp4",), "example": False}, r"no\.mp4"),
    "image": ({"image": ("no.png",)}, r"no\.png"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_before_anything_is_made(name, tmp_path):
    changes, message = BAD[name]
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        tiny(SV, tmp_path, **changes).setup().prepare()
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").glob("*.mp4"))


@pytest.mark.parametrize(
    ("slug", "changes", "message"),
    [
        (SV, {"cameras": ("camera_roof",)}, "some of camera_front.*got camera_roof"),
        (SV, {"cameras": FOUR_CAMERAS}, "must name 1 different cameras"),
        (MV, {"cameras": FOUR_CAMERAS[:1] * 4}, "must name 4 different cameras"),
        (MV, {"cameras": FOUR_CAMERAS[::-1]}, "`with_cameras` makes a pipeline"),
        (MV, {"view_prompts": ("a", "b")}, "must hold 4 prompts.*got 2"),
    ],
)
def test_a_config_that_makes_no_sense(slug, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RUNNER_CONFIGS[slug], **changes)


# Contracts


def _conditions(seed, views):
    keys = jax.random.split(jax.random.key(seed))
    text = jax.random.normal(keys[0], (2, views, 8, 32))
    shape = (2, views, 1, HEIGHT // 8, WIDTH // 8, 16)
    return Conditions(text=text, image_embedding=jax.random.normal(keys[1], shape))


def _case(slug, driven=False):
    config = RUNNER_CONFIGS[slug].tiny().pipeline
    views = len(config.diffusion_model.transformer.cameras)
    views = min(views, 2)
    config = derive_config(
        config,
        diffusion_model={
            "transformer": {
                "network": {"text_len": 8, "num_layers": 1},
                "len_t": 2,
                "window_size_t": 4,
            }
        },
    )
    if views > 1:
        config = with_cameras(config, FOUR_CAMERAS[:views])
    config = dataclasses.replace(config, conditioner=None)
    if driven:
        config = drivable(config)

    def initialize(pipeline, params, key):
        return pipeline.initialize_cache(
            params,
            conditions=_conditions(1, views),
            pixel_height=HEIGHT,
            pixel_width=WIDTH * views,
            key=key,
        )

    def make_input(index):
        frames = 5 if index == 0 else 8
        generator = np.random.default_rng(index)
        if driven:
            return generator.uniform(-1, 1, (2, frames, 2)).astype(np.float32)
        shape = (2, views, frames, HEIGHT, WIDTH, 3)
        return generator.uniform(-1, 1, shape).astype(np.float32)

    return testing.PipelineCase(
        config=config,
        initialize=initialize,
        num_chunks=4,
        make_input=make_input,
        new_conditions=lambda pipeline, params: _conditions(2, views),
    )


# The VAE's encoder takes a minute without jit; its own test has it.
CHECKS = [check for check in testing.CHECKS if check.__name__ != "check_without_jit"]
case = functools.cache(_case)


# What differs from the first: tree of outputs, what is committed, what comes in.
OTHERS = {
    "views": (MV, False, contract.check_sessions),
    "fast": (PERF, False, behaviour.check_history),
    "driven": (FOLDED, True, behaviour.check_encoder_state),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    check(case(FOLDED))


@pytest.mark.parametrize("name", OTHERS)
def test_what_other_pipelines_have_of_their_own(name):
    slug, driven, check = OTHERS[name]
    check(case(slug, driven))
