"""One walk, three futures: sessions are forked, undone and put into one batch.

python examples/fork_and_undo.py

A cache is a value. Keeping a reference is forking, and going back to one is undo; no
call copies or changes what you kept. Writes `outputs/fork_and_undo.png`, a row for each
future. A minute on two processor cores, most of it to compile.
"""

import pathlib

import imageio.v3 as iio
import jax
import numpy as np

import fdjax
from fdjax.run.media import to_uint8
from fdjax_models.methods.maze_world.controls import parse_controls

OUTPUT = pathlib.Path("outputs/fork_and_undo.png")
STRAIGHT, LEFT, RIGHT = (parse_controls(keys) for keys in ("w*4", "a*4", "d*4"))


def main() -> None:
    """Walks, forks, undoes, and compares."""
    pipeline = fdjax.runner_configs()["maze-world"].pipeline.setup()
    params = pipeline.load_params()

    def step(cache, control):
        """One chunk; returns the cache after it, and its last frame, [B, H, W, 3]."""
        cache, video = pipeline.generate(params, cache, control)
        return pipeline.finalize(params, cache), np.asarray(to_uint8(video[:, -1]))

    cache = pipeline.initialize_cache(
        params,
        text=["clear red brick maze at day"],
        pixel_height=96,
        pixel_width=160,
        key=jax.random.key(3),
    )
    for _ in range(3):
        cache, _ = step(cache, STRAIGHT)

    # Fork: from here on there are two walks. `crossing` stays as it is.
    crossing = cache
    left, left_frame = step(crossing, LEFT)
    right, right_frame = step(crossing, RIGHT)
    print("left and right differ:", not np.array_equal(left_frame, right_frame))

    # Undo: go back to the cache that was kept. The same call gives the same bytes.
    _, again = step(crossing, LEFT)
    print(
        "the same step again is the same to the bit:", np.array_equal(again, left_frame)
    )

    # Sessions of any age share a batch: one program, one pass over the weights. Each
    # has a clock and a key of its own.
    batch = fdjax.stack_caches([crossing, left, right])
    rows = [[] for _ in range(batch.num_sessions)]
    for _ in range(3):
        batch, frames = step(batch, np.stack([STRAIGHT, LEFT, RIGHT]))
        for row, frame in zip(rows, frames, strict=True):
            row.append(frame)
    print("chunks made by each session:", batch.autoregressive_index.tolist())

    # And out of the batch again.
    middle = fdjax.take_session(batch, 0)
    print("taken out:", middle.num_sessions, "session")

    OUTPUT.parent.mkdir(exist_ok=True)
    iio.imwrite(OUTPUT, np.concatenate([np.concatenate(row, axis=1) for row in rows]))
    print(f"Wrote {OUTPUT}.")


if __name__ == "__main__":
    main()
