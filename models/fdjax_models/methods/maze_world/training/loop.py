"""The training run: autoencoder, base model, few-step model, by the clock.

How long each stage runs is given in minutes, and the learning rate follows the share
of that time that is spent, so that a run fits a rented machine whatever its speed. All
programs are compiled side by side at the start, so that a mistake in the last stage
shows before the first one is done.
"""

import concurrent.futures
from pathlib import Path

import jax

from fdjax_models.methods.maze_world.training import distillation_stage as distillation
from fdjax_models.methods.maze_world.training import sheets, stages, state
from fdjax_models.methods.maze_world.training.journal import Clock, Journal
from fdjax_models.methods.maze_world.training.settings import Settings
from fdjax_models.methods.maze_world.training.stages import CODEC, MODEL, Run

STAGES = {
    "autoencoder": (stages.compile_autoencoder, stages.train_autoencoder),
    "denoiser": (stages.compile_denoiser, stages.train_denoiser),
    "distillation": (distillation.compile_steps, distillation.train),
}
"""How to compile and how to run each stage, in their order."""


def train(
    settings: Settings, out: Path, resume: Path | None, max_minutes: float
) -> None:
    """Runs the stages, and leaves weights, a journal and sample sheets in `out`.

    Args:
        settings: How to train.
        out: Folder for everything that is written.
        resume: Folder that an earlier run wrote, or None to begin.
        max_minutes: When to stop, compilation included.
    """
    clock = Clock(max_minutes)
    journal = Journal(out / "journal.jsonl", clock)
    journal.write(
        stage="start",
        device=f"{jax.local_device_count()} x {jax.devices()[0].device_kind}",
        jax=jax.__version__,
        seed=settings.seed,
    )
    params = stages.initial_params(settings)
    model = {name: params[name] for name in MODEL}
    codec = {name: params[name] for name in CODEC}
    trees = {"codec": codec, "params": model, "average": model}
    spent = dict.fromkeys(STAGES, 0.0)
    if resume is not None:
        trees |= {name: state.load(resume, name) for name in state.names(resume)}
        spent |= state.load_progress(resume)["spent"]
    run = Run(
        settings=settings,
        trees=trees,
        spent=spent,
        clock=clock,
        journal=journal,
        out=out,
    )
    with concurrent.futures.ThreadPoolExecutor() as executor:
        # XLA compiles without Python's lock, so that threads do it side by side.
        programs = {
            stage: executor.submit(compile, settings)
            for stage, (compile, _) in STAGES.items()
            if not run.is_over(stage)
        }
        for stage, program in programs.items():
            STAGES[stage][1](program.result(), run)
            if settings.write_sheets:
                sheets.write(stage, settings, trees, out, journal)
            # The run's time was over before the stage's; a resumed run goes on with it.
            if not run.is_over(stage):
                return
