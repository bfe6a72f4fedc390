"""The same video on any mesh, and what it costs between devices."""

import json
import os
import subprocess
import sys

import pytest

from fdjax import testing
from tests.mesh import cases

TOLERANCE = 1e-5  # of scale, the project's goal for float32


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What `cases` says; one process for all, as most of its time is its start."""
    flags = os.environ.get("XLA_FLAGS", "")
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": ":".join(sys.path),
    }
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.mesh.cases",
            str(tmp_path_factory.mktemp("mesh")),
        ],
        check=True,
        env=environment,
        timeout=400,
        stdout=subprocess.PIPE,
    )
    return dict(map(json.loads, done.stdout.splitlines()))


def is_close(error):
    assert not isinstance(error, str), error
    return error < TOLERANCE


@pytest.mark.parametrize("name", cases.ROLLOUTS)
def test_a_rollout_is_the_same_on_a_mesh(found, name):
    assert is_close(found[name])


def test_noise_is_the_same_to_the_bit_on_any_mesh(found):
    assert found["noise"] == [0, 0, 0]


def test_a_session_moves_from_one_mesh_to_another_and_to_one_device(found):
    assert isinstance(found["moved"], list), found["moved"]
    assert all(map(is_close, found["moved"]))


def test_parts_on_devices_of_their_own_make_the_same_video(found):
    assert is_close(found["placed"])


def test_heads_are_exchanged_twice_a_layer_and_nothing_else_is_sent(found):
    assert isinstance(found["sent"], dict), found["sent"]
    layers, tokens, width, latent = 1, 12, 48, 64
    # Half of the heads of all tokens, float32: queries, keys and values together.
    half = 4 * tokens * width // 2
    assert found["sent"]["sequence"] == [
        # The next latent, once a step.
        ["all-gather", 4 * tokens * latent, 1],
        ["all-to-all", half, layers],
        ["all-to-all", 3 * half, layers],
    ]


def test_branches_of_guidance_meet_once_a_step(found):
    both = 2 * 4 * 9 * 64  # two branches of 9 tokens, float32
    assert found["sent"]["guidance"] == [["all-gather", both, 1]]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "  %a.1 = (f32[1,6]{1,0}, f32[1,6]{1,0}) all-to-all(%x, %y), channel_id=1",
            ("all-to-all", 48),
        ),
        (
            "  ROOT %g = (bf16[4]{0}, bf16[8]{0}) all-gather-start(%x), channel_id=1",
            ("all-gather", 16),
        ),
        ("  r = f8e4m3fn[3,5]{1,0} collective-permute(x)", ("collective-permute", 15)),
        ("  d = bf16[8]{0} all-gather-done(%g)", None),
    ],
)
def test_a_program_is_read(line, expected):
    expected = [] if expected is None else [expected]
    assert testing.collectives(f"HloModule x\n{line}\n") == expected
