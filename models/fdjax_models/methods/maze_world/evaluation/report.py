"""The parts of maze-world's evaluation, each a function that returns numbers."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fdjax_models.methods.maze_world import text
from fdjax_models.methods.maze_world.evaluation import measures, recognition, rollouts
from fdjax_models.methods.maze_world.evaluation.rollouts import Walks
from fdjax_models.methods.maze_world.training.png import write_png

_SHEET_FRAMES = 9
_TURN_FRAMES = 16
"""Frames turned away, and then back: 4 chunks each, 8 of the 16 that are kept."""


def _correlation(rates: np.ndarray, commanded: np.ndarray) -> float:
    return float(np.corrcoef(rates.ravel(), commanded.ravel())[0, 1])


def _sheet(path: Path, walks: Walks, video: np.ndarray) -> None:
    """Draws the simulator's frames above the generated ones, walk by walk."""
    count = min(walks.video.shape[1], video.shape[1])
    frames = np.linspace(0, count - 1, _SHEET_FRAMES).astype(int)
    rows: list[np.ndarray] = []
    for truth, made in list(zip(walks.video, video, strict=True))[:6]:
        rows += [truth[frames], made[frames]]
    write_png(path, rows)


def motion(*, out: Path, num_walks: int, num_chunks: int) -> dict[str, Any]:
    """Commanded yaw rate against the motion in the generated frames."""
    del num_chunks
    walks = rollouts.simulate(range(num_walks), 96)
    pipeline = rollouts.pipeline_with()
    video = rollouts.generate(
        pipeline,
        pipeline.load_params(),
        walks.prompts,
        walks.controls,
        walks.video[:, 0],
    )
    _sheet(out / "motion.png", walks, video)
    made, truth = (
        np.stack([measures.yaw_rates(clip) for clip in clips])
        for clips in (video, walks.video)
    )
    commanded = walks.controls[..., 1]
    quality = measures.psnr(video, walks.video).mean(0)
    return {
        "yaw_correlation": round(_correlation(made, commanded), 3),
        "yaw_correlation_of_simulator": round(_correlation(truth, commanded), 3),
        "psnr_against_simulator_at_frame": {
            frame: round(float(quality[frame]), 1) for frame in (0, 4, 16, 48, 96)
        },
        "wanted": "yaw_correlation >= 0.9",
    }


def memory(*, out: Path, num_walks: int, num_chunks: int) -> dict[str, Any]:
    """Turning away and back: does the first view return?"""
    del num_chunks
    turn = np.zeros((2 * _TURN_FRAMES, 2), np.float32)
    turn[:_TURN_FRAMES, 1], turn[_TURN_FRAMES:, 1] = 1, -1
    walks = rollouts.simulate(range(100, 100 + num_walks), len(turn), controls=turn)
    results: dict[str, Any] = {}
    for name, window in (("whole_window", None), ("window_of_2_chunks", 2)):
        changes = {"transformer": {"window_size_t": window}} if window else {}
        pipeline = rollouts.pipeline_with(**changes)
        video = rollouts.generate(
            pipeline,
            pipeline.load_params(),
            walks.prompts,
            walks.controls,
            walks.video[:, 0],
        )
        _sheet(out / f"memory_{name}.png", walks, video)
        back = measures.psnr(video[:, -1], video[:, 0])
        results[name] = {
            "psnr": round(float(back.mean()), 1),
            "worst": round(float(back.min()), 1),
            "psnr_while_turned_away": round(
                float(measures.psnr(video[:, _TURN_FRAMES], video[:, 0]).mean()), 1
            ),
        }
    return {**results, "wanted": "psnr >= 18 with the whole window, clearly less cut"}


def prompts(*, out: Path, num_walks: int, num_chunks: int) -> dict[str, Any]:
    """Every colour of every material, from the prompt alone: is it recognised?"""
    del num_chunks
    classifier = recognition.train(jax.random.key(0))
    colours, materials = len(text.SLOTS["colour"]), len(text.SLOTS["material"])
    pairs = [(c, m) for c in range(colours) for m in range(materials)]
    styles = np.array([(c, m, (c + m) % 3, 0) for c, m in pairs], np.int32)
    walks = rollouts.simulate(range(200, 200 + len(pairs)), 48, styles=styles, every=4)
    pipeline = rollouts.pipeline_with()
    params = pipeline.load_params()
    made = [
        rollouts.generate(
            pipeline,
            params,
            walks.prompts[start : start + num_walks],
            walks.controls[start : start + num_walks],
            image=None,
            keep=4,
        )
        for start in range(0, len(pairs), num_walks)
    ]
    video = np.concatenate(made)
    _sheet(out / "prompts.png", walks, video)
    result: dict[str, Any] = {}
    for name, clips in (("maze_world", video), ("simulator", walks.video)):
        right = recognition.classify(classifier, clips) == styles[:, :2]
        result[name] = {
            "colour": round(float(right[:, 0].mean()), 3),
            "material": round(float(right[:, 1].mean()), 3),
        }
    return {**result, "wanted": "both >= 0.9"}


def endurance(*, out: Path, num_walks: int, num_chunks: int) -> dict[str, Any]:
    """Mean, contrast and sharpness at the end of a long walk, and the simulator's."""
    walks = rollouts.simulate(
        range(300, 300 + num_walks), 4 * (num_chunks - 1), every=8
    )
    pipeline = rollouts.pipeline_with()
    video = rollouts.generate(
        pipeline,
        pipeline.load_params(),
        walks.prompts,
        walks.controls,
        walks.video[:, 0],
        keep=8,
    )
    _sheet(out / "endurance.png", walks, video)
    fifth = video.shape[1] // 5
    truth = measures.statistics(walks.video)
    made = measures.statistics(video[:, -fifth:])
    early = measures.statistics(video[:, 1 : 1 + fifth])
    return {
        "chunks": num_chunks,
        "simulator": {name: round(value, 4) for name, value in truth.items()},
        "last_fifth": {name: round(value, 4) for name, value in made.items()},
        "ratio": {name: round(made[name] / truth[name], 3) for name in made},
        "ratio_of_first_fifth": {
            name: round(early[name] / truth[name], 3) for name in early
        },
        "wanted": "ratios within 0.75 and 1.25",
    }


PARTS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "motion": motion,
    "memory": memory,
    "prompts": prompts,
    "endurance": endurance,
}
"""The parts by name."""
