"""One set of weights, conditions and noise for both implementations; their errors.

As a worker it writes them, or makes the float32 rollout that the others are measured
against.
"""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarking import measure, methods

WEIGHTS = {
    name: f"{name}.safetensors" for name in ("transformer", "encoder", "decoder")
}
SOME_CHUNKS = 3
"""Chunks of the comparisons that explain rather than measure."""

LAYOUTS = {
    "wan_dit": "official",
    "taehv_decoder": "flashdreams",
    "wan_vae_decoder": "official 2.1",
    "wan_vae_encoder": "official 2.1",
}


def main(spec: dict[str, Any], report: measure.Report) -> None:
    """The rollout of `share`, in the dtype of the spec and of the same weights."""
    import jax

    half, full = (
        methods.pipeline_config(
            spec["method"],
            decoder=spec["decoder"],
            dtype=dtype,
            overrides=spec["overrides"],
        )
        for dtype in ("bfloat16", spec["dtype"])
    )
    params = half.setup().init_params(jax.random.key(0))
    if spec.get("write_weights"):
        share(half, params, Path(spec["share"]), spec)
    else:
        params = jax.tree.map(lambda leaf: leaf.astype(spec["dtype"]), params)
        rollout(full.setup(), params, Path(spec["share"]), spec)
    report.add("chunks", spec["compared_chunks"])


def share(config: Any, params: Any, folder: Path, spec: dict[str, Any]) -> None:
    """Writes weights, text and noise for the reference, and our own rollout."""
    import jax

    pipeline = config.setup()
    description = {
        "reference": methods.reference_spec(config),
        "reference_worker": methods.reference_worker(config),
        "first_steady_chunk": methods.first_steady_chunk(config),
    }
    (folder / "reference.json").write_text(json.dumps(description))
    if methods.follows_map(config):
        # Timed, not compared: its network makes weights of its own.
        _write_weights(pipeline, params, folder, ("encoder", "decoder"))
        return
    conditions = methods.random_conditions(
        config, jax.random.key(1), (spec["pixel_height"], spec["pixel_width"])
    )
    np.save(folder / "text.npy", np.asarray(conditions.text, np.float32))
    np.save(folder / "noise.npy", _noise(pipeline, params, conditions, spec))
    _write_weights(pipeline, params, folder, ("transformer", "decoder"))
    rollout(pipeline, params, folder, spec)
    rounded = dataclasses.replace(
        config,
        diffusion_model=dataclasses.replace(
            config.diffusion_model,
            scheduler=_rounded_schedule(config.diffusion_model.scheduler),
        ),
    )
    few = spec | {"compared_chunks": min(SOME_CHUNKS, spec["compared_chunks"])}
    rollout(rounded.setup(), params, folder, few, suffix="_rounded_schedule")


def _write_weights(
    pipeline: Any, params: Any, folder: Path, names: Sequence[str]
) -> None:
    """Writes components' weights in the layouts that the reference reads."""
    import safetensors.numpy

    from fdjax_convert.rules import to_torch
    from fdjax_convert.tables.layouts import layouts

    for name in names:
        component = pipeline.components.get(name)
        if component is None:
            continue
        kind = component.params_owner.architecture
        (layout,) = (x for x in layouts(kind) if x.name == LAYOUTS[kind])
        weights = to_torch(params[name], layout.rules)
        safetensors.numpy.save_file(weights, folder / WEIGHTS[name])


def rollout(
    pipeline: Any, params: Any, folder: Path, spec: dict[str, Any], suffix: str = ""
) -> None:
    """Writes the latent and the video of every compared chunk."""
    import jax

    config = pipeline.config
    name = f"fdjax_{config.diffusion_model.transformer.network.dtype}{suffix}"
    cache = pipeline.initialize_cache(
        params,
        conditions=methods.random_conditions(
            config, jax.random.key(1), (spec["pixel_height"], spec["pixel_width"])
        ),
        pixel_height=spec["pixel_height"],
        pixel_width=spec["pixel_width"],
    )
    every = np.load(folder / "noise.npy", mmap_mode="r")
    for index, noise in enumerate(every[: spec["compared_chunks"]]):
        cache, video = pipeline.generate(
            params, cache, noise=jax.numpy.asarray(noise), donate=True
        )
        if pipeline.decoder is None:
            video = None
        save_chunk(folder, name, index, cache.final_state.clean, video)
        cache = pipeline.finalize(params, cache, donate=True)


def save_chunk(folder: Path, name: str, index: int, latent: Any, video: Any) -> None:
    """Writes a chunk: latent float32[B, L, C]; video float16[B, T, H, W, C] or None."""
    np.save(folder / f"{name}_latent_{index}.npy", np.asarray(latent, np.float32))
    if video is not None:
        np.save(folder / f"{name}_video_{index}.npy", np.asarray(video, np.float16))


def _rounded_schedule(scheduler: Any) -> Any:
    """The schedule as the reference has it in bfloat16: 727.27 becomes 728.

    It hands the network its timestep in the latent's dtype, and torch rounds a noise
    level that multiplies a bfloat16 latent to bfloat16.
    """
    import ml_dtypes

    from fdjax.schedulers.flow_match import FlowMatchScheduler

    class Rounded(FlowMatchScheduler):
        @functools.cached_property
        def steps(self):
            exact = super().steps
            return type(exact)(
                *(x.astype(ml_dtypes.bfloat16).astype(np.float32) for x in exact)
            )

    return dataclasses.replace(scheduler, _target=Rounded)


def _noise(
    pipeline: Any, params: Any, conditions: Any, spec: dict[str, Any]
) -> np.ndarray:
    """Standard normal, rounded to bfloat16: float32[chunks, draws, B, L, C]."""
    import ml_dtypes

    model = pipeline.diffusion_model
    cache = pipeline.initialize_cache(
        params,
        conditions=conditions,
        pixel_height=spec["pixel_height"],
        pixel_width=spec["pixel_width"],
    ).transformer_cache
    shape = model.scheduler.num_draws, *model.transformer.latent_shape(cache)
    draws = np.random.default_rng(0).standard_normal(
        (spec["compared_chunks"], *shape), np.float32
    )
    return draws.astype(ml_dtypes.bfloat16).astype(np.float32)


def errors(folder: Path, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Cosine similarity and relative error, chunk by chunk.

    Args:
        folder: Where the rollouts are.
        pairs: Names of two rollouts; the second is the norm of the relative error
            |a - b| / |b|. Chunks that one of them lacks are left out.

    Returns:
        One row per pair, chunk and kind of output.
    """
    rows = []
    for first, second in pairs:
        for kind in ("latent", "video"):
            index = 0
            while all(
                (folder / f"{name}_{kind}_{index}.npy").exists()
                for name in (first, second)
            ):
                a, b = (
                    np.load(folder / f"{name}_{kind}_{index}.npy").astype(np.float64)
                    for name in (first, second)
                )
                rows.append(
                    {"pair": f"{first} / {second}", "kind": kind, "chunk": index}
                    | difference(a, b)
                )
                index += 1
    return rows


def difference(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Cosine similarity of two arrays, and |a - b| / |b|."""
    norms = np.linalg.norm(a), np.linalg.norm(b)
    return {
        "cosine": float(np.vdot(a, b) / (norms[0] * norms[1])),
        "relative_error": float(np.linalg.norm(a - b) / norms[1]),
    }


if __name__ == "__main__":
    measure.worker(main)
