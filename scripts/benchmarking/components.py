"""Worker: a text encoder at its full size, or one forward pass of a transformer."""

import time
from typing import Any

from benchmarking import measure, methods

PROMPT = "A cat walks along a beach at sunset, waves rolling in, cinematic light."


def main(spec: dict[str, Any], report: measure.Report) -> None:
    body = {"text_encoder": text_encoder, "forward": forward}[spec["component"]]
    body(spec, report)


def text_encoder(spec: dict[str, Any], report: measure.Report) -> None:
    """Encodes one prompt with random weights; bytes stand in for tokens."""
    import dataclasses

    import jax

    from fdjax.run.stats import memory_stats
    from fdjax.testing import count_compilations

    config = methods.runner_config(spec["method"]).pipeline.conditioner.text_encoder
    config = dataclasses.replace(config, checkpoint_path=None, tokenizer_path=None)
    encoder = config.setup()
    params, seconds = _timed(encoder.init_params, jax.random.key(0))
    report.add("weights", {"seconds": seconds, **_size(params)})
    embedding, first = _timed(encoder.encode, params, [PROMPT])
    report.add("first_prompt", {"seconds": first, "shape": list(embedding.shape)})
    with count_compilations() as compilations:
        times = [
            1e3 * _timed(encoder.encode, params, [f"{PROMPT} {number}"])[1]
            for number in range(20)
        ]
        compiled = compilations()
    report.add("prompt_ms", measure.spread(times))
    report.add("compilations_after_warm_up", compiled)
    report.add("memory", memory_stats())


def forward(spec: dict[str, Any], report: measure.Report) -> None:
    """Calls a method's network once per timing, with guidance if the method has it."""
    import jax
    import jax.numpy as jnp

    from fdjax.run.stats import memory_stats

    config = methods.pipeline_config(
        spec["method"], decoder="none", dtype=spec["dtype"], overrides=spec["overrides"]
    )
    transformer = config.diffusion_model.setup().transformer
    params, seconds = _timed(transformer.init_params, jax.random.key(0))
    report.add("weights", {"seconds": seconds, **_size(params)})
    size = spec["pixel_height"] // 8, spec["pixel_width"] // 8
    conditions = methods.random_conditions(
        config, jax.random.key(1), (spec["pixel_height"], spec["pixel_width"])
    )
    cache = transformer.initialize_cache(params, conditions, *size)
    shape = transformer.latent_shape(cache)
    report.add("shape", {"latent": list(shape), "conditions": conditions.text.shape})

    def predict(params, cache, latent, timestep):
        workspace = transformer.start(params, cache, None)
        workspace, flow = transformer.predict_flow(params, workspace, latent, timestep)
        return transformer.release(workspace)[0], flow

    call = jax.jit(predict, donate_argnums=1)
    times = []
    for number in range(3):
        latent = jax.random.normal(jax.random.key(number), shape, jnp.float32)
        (cache, flow), seconds = _timed(
            call, params, cache, latent, jnp.float32(900 - number)
        )
        times.append(seconds)
        report.add("forward_s", times)
    report.add("finite", bool(jnp.isfinite(flow).all()))
    report.add("memory", memory_stats())


def _timed(function: Any, *args: Any) -> tuple[Any, float]:
    import jax

    start = time.perf_counter()
    result = jax.block_until_ready(function(*args))
    return result, round(time.perf_counter() - start, 4)


def _size(params: Any) -> dict[str, float]:
    import jax

    leaves = jax.tree.leaves(params)
    return {
        "parameters": sum(leaf.size for leaf in leaves),
        "gib": round(sum(leaf.nbytes for leaf in leaves) / 2**30, 3),
    }


if __name__ == "__main__":
    measure.worker(main)
