"""A whole training run, tiny: three stages, stopped and carried on.

Takes 2.5 minutes on two processor cores, so it runs with the GPU tests.
"""

import json

import pytest

from fdjax_models.methods.maze_world.training import loop, settings, state

TINY = settings.Settings(
    dtype="float32",
    attention="xla",
    autoencoder_minutes=1e-4,
    denoiser_minutes=1e-4,
    distillation_minutes=1e-4,
    autoencoder_batch=1,
    autoencoder_chunks=2,
    denoiser_batch=1,
    denoiser_chunks=2,
    steps_per_dispatch=1,
    pool_clips=1,
    fresh_clips=1,
    distillation_batch=1,
    distillation_steps=1,
    critic_updates=1,
    rollouts=1,
    rollout_chunks=4,
    write_sheets=False,
    network=(("num_layers", 1), ("dim", 32), ("ffn_dim", 32), ("num_heads", 1)),
)


def stages_of(folder) -> list[str]:
    lines = (folder / "journal.jsonl").read_text().splitlines()
    return [json.loads(line)["stage"] for line in lines]


@pytest.mark.gpu
def test_a_run_goes_through_its_stages_and_is_carried_on(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    loop.train(TINY, first, None, max_minutes=60)
    assert stages_of(first) == [
        "start",
        "autoencoder",
        "pool",
        "denoiser",
        "distillation",
    ]
    assert all(spent > 0 for spent in state.load_progress(first)["spent"].values())
    average, few_step = (state.load(first, name) for name in ("average", "few_step"))
    assert average.keys() == few_step.keys() == {"transformer", "text_encoder"}

    loop.train(TINY, second, first, max_minutes=60)
    assert stages_of(second) == ["start"]  # all time is spent
