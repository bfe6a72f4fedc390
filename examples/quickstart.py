"""Walks through a maze for a few seconds of video: the whole API in one page.

python examples/quickstart.py

Needs no GPU and no download: maze-world ships with its weights. Writes
`outputs/quickstart.gif`. Half a minute on two processor cores, most of it to compile.
"""

import pathlib

import imageio.v3 as iio
import jax
import numpy as np

import fdjax
from fdjax.run.media import to_uint8
from fdjax_models.methods.maze_world.controls import controls_per_chunk, parse_controls

OUTPUT = pathlib.Path("outputs/quickstart.gif")


def main() -> None:
    """Generates seven chunks and writes them."""
    # A config describes a method; setup() makes the pipeline, which holds no arrays.
    pipeline = fdjax.runner_configs()["maze-world"].pipeline.setup()

    # All arrays are arguments: the weights, and the cache, which is the session.
    params = pipeline.load_params()
    cache = pipeline.initialize_cache(
        params,
        text=["clear blue metal maze at night"],
        pixel_height=96,
        pixel_width=160,
        key=jax.random.key(0),
    )

    # Walk 16 frames, turn left for 8. The first chunk shows the start; each later one
    # makes 4 frames of what the keys say.
    controls = controls_per_chunk(parse_controls("w*16 a*8"), num_chunks=7)
    frames = []
    for number, control in enumerate(controls):
        # [B, T, H, W, 3] in [-1, 1]
        cache, video = pipeline.generate(params, cache, control)
        # The video could be shown here, before the chunk is committed to the cache.
        cache = pipeline.finalize(params, cache)
        frames.extend(np.asarray(to_uint8(video[0])))
        print(f"chunk {number}: {video.shape[1]} frames, now {len(frames)}")

    OUTPUT.parent.mkdir(exist_ok=True)
    iio.imwrite(OUTPUT, np.stack(frames), duration=1000 / 12, loop=0)
    print(f"Wrote {OUTPUT}.")


if __name__ == "__main__":
    main()
