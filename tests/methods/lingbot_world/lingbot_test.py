"""LingBot-World: its published sizes, its runner on tiny networks, its contracts."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from PIL import Image

from fdjax import checkpoint, testing
from fdjax.checkpoint import param_shapes
from fdjax.config import derive_config
from fdjax.contract.conditioner import Conditions
from fdjax.run import cli, media
from fdjax.run.prompts import PromptPlan
from fdjax_models.methods.lingbot_world import plot
from fdjax_models.methods.lingbot_world.config import RUNNER_CONFIGS
from fdjax_models.networks.camera.encoder import CameraInput
from tests.networks.camera.poses_test import random_poses, turning
from tests.networks.wan_dit.tiny_methods import shrink

SHORT = "lingbot-world-fast-taehv-window15-sink3"
SMALL = "lingbot-world-v2-1.3b-causal-fast"


def tiny(folder, **changes):
    config = shrink(RUNNER_CONFIGS[SHORT], folder / "out", total_blocks=2)
    return dataclasses.replace(config, progress=False, prompt="a yard", **changes)


def files(folder, poses, intrinsics=None):
    np.save(folder / "poses.npy", poses)
    given = {"poses": str(folder / "poses.npy")}
    if intrinsics is not None:
        np.save(folder / "lens.npy", intrinsics)
        given["intrinsics"] = str(folder / "lens.npy")
    return given


def test_published_sizes():
    """14B with the camera branch, counted by hand."""
    config = RUNNER_CONFIGS["lingbot-world-fast"].pipeline
    transformer = config.diffusion_model.transformer
    shapes = param_shapes(transformer.setup())
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    dim, ffn, layers = 5120, 13824, 40
    square = dim * dim + dim
    block = 8 * square + 4 * dim + 2 * dim + 6 * dim + 2 * dim * ffn + ffn + dim
    camera = 4 * layers * square + 2 * square + (1536 * dim + dim)
    rest = (36 * 4 * dim + dim) + (4096 * dim + dim + square)
    rest += (256 * dim + dim + square) + (6 * dim * dim + 6 * dim)
    rest += 64 * dim + 64 + 2 * dim
    assert count == layers * block + camera + rest
    assert transformer.window_size_t == 63
    steps = config.diffusion_model.scheduler.setup().steps
    np.testing.assert_array_equal(steps.timestep, (999, 978, 947, 825))


@pytest.mark.parametrize("slug", RUNNER_CONFIGS)
def test_slugs(slug):
    config = RUNNER_CONFIGS[slug]
    transformer = config.pipeline.diffusion_model.transformer
    sizes = 3, 63, 0
    if slug.endswith("window15-sink3"):
        sizes = 3, 15, 3
    if slug.startswith(SMALL):
        sizes = 4, 12, 6
    assert sizes == (
        *(transformer.len_t, transformer.window_size_t, transformer.sink_size_t),
    )
    assert config.pipeline.encoder.len_t == transformer.len_t
    assert slug.startswith(config.weights)
    assert f"/{config.weights}/" in transformer.checkpoint_path
    small_decoder = "Taehv" in type(config.pipeline.decoder).__name__
    assert small_decoder == ("taehv" in slug)
    assert (config.pixel_height, config.pixel_width, config.fps) == (464, 832, 16)


def test_published_values_of_the_small_one():
    """Parameters of the published files; timesteps of the reference's scheduler."""
    model = RUNNER_CONFIGS[SMALL].pipeline.diffusion_model
    shapes = param_shapes(model.transformer.setup())
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert count == 1_709_502_016
    assert model.transformer.checkpoint_path.endswith("/model.safetensors.index.json")
    np.testing.assert_array_equal(
        model.scheduler.setup().steps.timestep, (999, 937, 833, 624)
    )


@pytest.mark.parametrize(
    ("slug", "path", "refused"),
    [
        (SMALL, "hf://robbyant/lingbot-world-fast/a.safetensors", True),
        (SMALL, "/hub/models--robbyant--lingbot-world-fast/b/a.safetensors", True),
        (SHORT, "robbyant/lingbot-world-v2-14b-causal-fast@main/a.safetensors", True),
        (SHORT, "robbyant/lingbot-world-fast", False),
        ("lingbot-world-v2-14b-causal-fast", "my/lingbot-world-fast/a.pt", False),
        (
            "lingbot-world-v2-14b-causal-fast",
            "hf://robbyant/lingbot-world-v2-14b-causal-fast-diffusers/transformer",
            False,
        ),
    ],
)
def test_weights_of_another_version_are_refused(slug, path, refused):
    config = RUNNER_CONFIGS[slug]
    if not refused:
        assert dataclasses.replace(config, checkpoint_path=path).weights
        return
    with pytest.raises(ValueError, match=f"weights of robbyant/{config.weights} for"):
        dataclasses.replace(config, checkpoint_path=path)
    assert dataclasses.replace(config, checkpoint_path=path, weights="")


def test_a_converted_checkpoint_remembers_its_version(tmp_path):
    """And is refused before the poses, or anything else, are read."""
    config = dataclasses.replace(
        tiny(tmp_path), random_weights=False, poses="none.npy", image="none.png"
    )
    pipeline = config.pipeline
    component = pipeline.diffusion_model.transformer.setup()
    params = component.init_params(jax.random.key(0))
    path = tmp_path / "weights"
    hub = "/hub/models--robbyant--lingbot-world-v2-14b-causal-fast/a.safetensors"
    checkpoint.save(path, params, component=component, source={"path": hub})
    config = dataclasses.replace(config, checkpoint_path=str(path))
    with pytest.raises(ValueError, match="must hold weights of robbyant/lingbot-world"):
        config.setup().prepare()
    for taken in ({"weights": ""}, {"weights": "lingbot-world-v2-14b-causal-fast"}):
        with pytest.raises(FileNotFoundError, match=r"none\.png"):
            dataclasses.replace(config, **taken).setup().prepare()


def test_the_small_one_takes_sixteen_poses_a_chunk(tmp_path):
    config = shrink(RUNNER_CONFIGS[SMALL], tmp_path, total_blocks=2)
    inputs = dataclasses.replace(config, prompt="a yard").setup().read_inputs()
    assert [inputs.controls[i].poses.shape[1] for i in range(2)] == [13, 16]


def test_a_run_writes_a_video_a_plot_and_what_repeats_it(tmp_path):
    given = files(tmp_path, turning(21), np.tile([500.0, 500, 416, 240], (21, 1)))
    result = tiny(tmp_path, **given).setup().run()
    assert result.num_frames == 21
    names = {path.name for path in result.files}
    name = f"{SHORT}-random-weights"
    assert {f"{name}.mp4", f"{name}.camera.png", f"{name}.config.json"} <= names
    picture = np.asarray(Image.open(tmp_path / "out" / f"{name}.camera.png"))
    assert picture.shape == (320, 960, 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 3
    again = tmp_path / "out" / f"{name}.config.json"
    assert cli.run(["--config", str(again)]) == 0
    second = media.read_video(tmp_path / "out" / f"{name}-2.mp4")
    np.testing.assert_array_equal(media.read_video(result.output), second)


def test_the_camera_steers(tmp_path):
    videos = [
        media.read_video(tiny(tmp_path, controls=keys).setup().run().output)
        for keys in ("w*20", "w*8 d*12", "w*20")
    ]
    assert (videos[0] != videos[1]).mean() > 0.1
    np.testing.assert_array_equal(videos[0], videos[2])


def test_a_written_path_ends_with_the_chunk_in_which_it_ends(tmp_path):
    config = dataclasses.replace(tiny(tmp_path, controls="w*9"), total_blocks=9)
    runner = config.setup()
    inputs = runner.read_inputs()
    assert runner.num_chunks(inputs) == 2
    last = inputs.controls[1].poses[0]
    np.testing.assert_array_equal(last[1:], np.broadcast_to(last[1], (11, 4, 4)))
    assert [inputs.label(0, 0), inputs.label(0, 1), inputs.label(1, 5)] == ["", "w", ""]


def test_keys_may_come_in_a_file(tmp_path):
    (tmp_path / "walk.txt").write_text("w*4\nd*4\n")
    inputs = [
        tiny(tmp_path, controls=given).setup().read_inputs()
        for given in (str(tmp_path / "walk.txt"), tmp_path / "walk.txt", "w*4 d*4")
    ]
    for other in inputs[:2]:
        np.testing.assert_array_equal(
            other.controls[0].poses, inputs[2].controls[0].poses
        )


def test_the_lens_follows_the_size_of_the_video(tmp_path):
    given = files(tmp_path, turning(9), np.array([500.0, 510, 416, 240]))
    camera = tiny(tmp_path, **given).setup().read_inputs().controls[0]
    height, width = 32 / 480, 48 / 832
    expected = (500 * width, 510 * height, 416 * width, 240 * height)
    np.testing.assert_allclose(camera.intrinsics[0, 0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("fit", "size", "lens"),
    [
        ("stretch", (32, 48), (30.0, 40, 24, 16)),
        ("crop", (32, 48), (40.0, 40, 24, 16)),
        ("pad", (32, 48), (30.0, 30, 24, 16)),
        ("keep", (16, 48), (30.0, 20, 24, 8)),
    ],
)
def test_the_lens_follows_what_the_picture_fits(tmp_path, fit, size, lens):
    """A picture and a lens of 40 x 80; of its shape, what is nearest in patches."""
    given = files(tmp_path, turning(9), np.array([50.0, 50, 40, 20]))
    Image.fromarray(np.zeros((40, 80, 3), np.uint8)).save(tmp_path / "wide.png")
    image = {"image": str(tmp_path / "wide.png"), "fit": fit}
    capture = {"capture_height": 40, "capture_width": 80}
    inputs = tiny(tmp_path, **given, **image, **capture).setup().read_inputs()
    assert inputs.image.shape == (1, *size, 3)
    np.testing.assert_allclose(inputs.controls[0].intrinsics[0, 0], lens, rtol=1e-6)


def test_opengl_and_world_scale(tmp_path):
    plain = tiny(tmp_path, **files(tmp_path, turning(9))).setup().read_inputs()
    flipped = turning(9) * np.array([1.0, -1, -1, 1])
    given = files(tmp_path, flipped)
    made = tiny(tmp_path, **given, opengl=True, world_scale=3.0).setup().read_inputs()
    np.testing.assert_allclose(
        made.controls[0].poses, plain.controls[0].poses, atol=1e-6
    )
    assert made.controls[0].world_scale == 3.0
    assert plain.controls[0].world_scale == pytest.approx(0.4472136, rel=1e-6)


def steps(inputs, chunks):
    """Where the camera goes from each pose to the next, as it sees it."""
    poses = np.concatenate([inputs.controls[n].poses[0] for n in range(chunks)])
    return np.linalg.inv(poses[:-1]) @ poses[1:]


@pytest.mark.parametrize("path", ["controls", "camera", "poses", "array"])
def test_what_comes_when_the_path_ends(tmp_path, path):
    """Of 20 steps: keys are held on, a path rests; repeated, it goes on from there."""
    given = {"controls": "w*12 d*8"}
    if path == "camera":  # at 16 frames/s: 12 frames of walking, 8 of turning
        given = {"camera": "forward 0.6, yaw 16"}
    elif path != "controls":
        given = files(tmp_path, turning(21))
        given = {"controls": given["poses"]} if path == "array" else given
    made = {}
    for end in ("stop", "hold", "repeat"):
        config = dataclasses.replace(tiny(tmp_path, **given), total_blocks=5)
        runner = dataclasses.replace(config, controls_end=end).setup()
        inputs = runner.read_inputs()
        assert runner.num_chunks(inputs) == (2 if end == "stop" else 5)
        made[end] = steps(inputs, 2 if end == "stop" else 5)
    for end in ("hold", "repeat"):
        np.testing.assert_allclose(made[end][:20], made["stop"], atol=1e-6)
    last = made["stop"][-1] if path == "controls" else np.eye(4)
    rest = np.broadcast_to(last, (36, 4, 4))
    np.testing.assert_allclose(made["hold"][20:], rest, atol=1e-5)
    np.testing.assert_allclose(made["repeat"][20:40], made["stop"], atol=1e-5)
    np.testing.assert_allclose(made["repeat"][40:], made["stop"][:16], atol=1e-5)


def test_keys_of_a_live_session_walk_as_those_of_a_run(tmp_path):
    runner = tiny(tmp_path, total_blocks=3, controls="w*8 wa*12 id*12").setup()
    inputs = runner.read_inputs()
    steering = runner.steering(inputs)
    state, before = steering.start, runner.frames_before
    assert steering.actions["i"] == "look up"
    for chunk in range(3):
        # In a run keys change by the frame, live by the chunk.
        keys = ("w", "wa", "id")[chunk]
        assert before(chunk + 1) - 1 == (8, 20, 32)[chunk]
        state, control = steering.control(state, keys)
        wanted = inputs.controls[chunk]
        for name in ("poses", "intrinsics", "world_scale"):
            given, expected = getattr(control, name), getattr(wanted, name)
            np.testing.assert_array_equal(given, expected, err_msg=name)
            assert given.dtype == expected.dtype


def test_a_live_session_follows_a_recorded_path(tmp_path):
    runner = tiny(tmp_path, **files(tmp_path, turning(21))).setup()
    inputs = runner.read_inputs()
    steering = runner.steering(inputs)
    assert not steering.actions
    _, control = steering.control(1, "")
    np.testing.assert_array_equal(control.poses, inputs.controls[1].poses)


def test_prompts_change_beside_any_path(tmp_path):
    """The video frames of chunk 0 are 0 to 8, those of chunk 1 are 9 to 20."""
    events = json.dumps([{"frame": 9, "prompt": "night"}])
    for path in (files(tmp_path, turning(21)), {"camera": "yaw 40"}):
        plain = tiny(tmp_path, **path).setup().read_inputs()
        runner = tiny(tmp_path, **path, controls=events).setup()
        inputs = runner.read_inputs()
        plan = PromptPlan(inputs.script, runner.frames_before)
        assert [plan.at(chunk) for chunk in (0, 1, 2)] == [None, "night", None]
        for given, expected in zip(inputs.controls, plain.controls, strict=True):
            np.testing.assert_array_equal(given.poses, expected.poses)


def test_prompts_alone_leave_the_camera_where_it_is(tmp_path):
    events = json.dumps([{"frame": 9, "prompt": "night"}])
    runner = tiny(tmp_path, controls=events).setup()
    inputs = runner.read_inputs()
    assert runner.num_chunks(inputs) == 2
    np.testing.assert_array_equal(steps(inputs, 2), np.tile(np.eye(4), (20, 1, 1)))


def test_a_path_that_is_too_long_is_named(tmp_path):
    config = tiny(tmp_path, controls="w", controls_end="hold")
    with pytest.raises(ValueError, match="at most 1000000 video frames, got 11999997"):
        dataclasses.replace(config, total_blocks=10**6).setup().read_inputs()


def skewed():
    poses = turning(9)
    poses[2, 0, 0] += 0.01
    return poses


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: {"poses": str(d / "none.npy")}, "There is no file"),
        (lambda d: files(d, turning(8)), "takes 9 poses, got 8"),
        (lambda d: files(d, skewed()), "pose 2 are off orthonormal by 0.0"),
        (lambda d: files(d, np.full((9, 4, 4), np.nan)), "pose 0 is not"),
        (lambda d: files(d, turning(9), np.ones((4, 4))), "for each of 9 poses, got 4"),
        (
            lambda d: files(d, turning(9), np.array([1000.0, 1000, 960, 540])),
            "must be for 480x832 pixels.* set capture_height",
        ),
        (
            lambda d: files(d, turning(9)) | {"camera": "yaw 3"},
            "one of poses and camera",
        ),
        (
            lambda d: files(d, turning(9)) | {"controls": "w*3"},
            "one of poses and controls",
        ),
        (lambda d: {"camera": "yaw 3", "controls": "w*3"}, "camera and controls"),
        (lambda d: {"opengl": True}, "give poses with it"),
        (lambda d: {"camera": "fly 3"}, "'fly 3' must be one of"),
        (lambda d: {"controls": "z*3"}, "has unknown key.s. 'z'"),
    ],
)
def test_bad_input_is_named_before_anything_is_made(tmp_path, change, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        tiny(tmp_path, **change(tmp_path)).setup().prepare()
    assert not list((tmp_path / "out").glob("*.mp4"))


@pytest.mark.parametrize("suffix", ["pickle", "npz", "text"])
def test_a_file_that_is_no_array_is_named(tmp_path, suffix):
    path = tmp_path / "poses.npy"
    if suffix == "pickle":
        np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    elif suffix == "npz":
        with path.open("wb") as file:
            np.savez(file, poses=turning(9))
    else:
        path.write_text("1 2 3")
    with pytest.raises(ValueError, match=r"poses.npy must be (a|one) .npy array"):
        tiny(tmp_path, poses=str(path)).setup().prepare()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"world_scale": 0.0}, "world_scale must be above 0"),
        ({"world_scale": float("nan")}, "world_scale must be above 0"),
        ({"capture_width": 0}, "capture_width must be at least 1"),
    ],
)
def test_a_config_that_makes_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RUNNER_CONFIGS[SHORT], **changes)


def test_a_plot_of_a_still_camera():
    assert plot.draw(np.tile(np.eye(4), (9, 1, 1)), 16).shape == (320, 960, 3)


# Contracts

HEIGHT, WIDTH, LEN_T = 16, 32, 3


def _conditions(seed):
    keys = jax.random.split(jax.random.key(seed))
    text = jax.random.normal(keys[0], (2, 8, 24))
    image = jax.random.uniform(keys[1], (2, HEIGHT, WIDTH, 3), minval=-1.0)
    return Conditions(text=text, image=image)


def _initialize(pipeline, params, key):
    return pipeline.initialize_cache(params, conditions=_conditions(1), key=key)


def _camera(index):
    frames = 1 + 4 * (LEN_T - 1) if index == 0 else 4 * LEN_T
    poses = random_poses(2 * frames, index).reshape(2, frames, 4, 4)
    return CameraInput(
        poses=poses.astype(np.float32),
        intrinsics=np.full((2, frames, 4), 30, np.float32),
        world_scale=np.array([1, 2], np.float32),
    )


def _case():
    config = shrink(RUNNER_CONFIGS[SHORT], "outputs").pipeline
    config = derive_config(
        config,
        conditioner=None,
        diffusion_model={
            "transformer": {
                "window_size_t": 6,
                "sink_size_t": 3,
                "network": {"num_layers": 1},
            }
        },
    )
    return testing.PipelineCase(
        config=config,
        initialize=_initialize,
        num_chunks=5,
        make_input=_camera,
        new_conditions=lambda pipeline, params: _conditions(2),
    )


# The VAE's encoder takes a minute without jit; its own test has it, with the camera.
CHECKS = [check for check in testing.CHECKS if check.__name__ != "check_without_jit"]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    check(_case())


def test_help_names_the_camera(capsys):
    assert cli.run([SHORT, "--help"]) == 0
    text = capsys.readouterr().out
    for name in ("--poses", "--intrinsics", "--camera", "--controls", "--opengl"):
        assert re.search(rf"^\s*{name}\b", text, re.MULTILINE), name


def test_the_config_is_json(tmp_path):
    from fdjax import config as config_lib
    from fdjax.run import plugins

    text = config_lib.to_json(RUNNER_CONFIGS[SHORT], classes=plugins.known_classes())
    assert json.loads(text)["camera"] == ""
