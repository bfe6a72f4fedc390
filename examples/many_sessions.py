"""Three walkers share one forward pass: they join, steer, undo and leave at any time.

python examples/many_sessions.py

A batch has a fixed number of lanes and is compiled once. Each session keeps its own
prompt, seed, age and way back, and makes what it would make alone. Writes
`outputs/many_sessions.png`, a row for each walker. Half a minute on two processor
cores, most of it to compile.
"""

import pathlib

import imageio.v3 as iio
import jax
import numpy as np

import fdjax
from fdjax.run.media import to_uint8
from fdjax_models.methods.maze_world.controls import parse_controls

OUTPUT = pathlib.Path("outputs/many_sessions.png")
STRAIGHT, LEFT, RIGHT = (parse_controls(keys) for keys in ("w*4", "a*4", "d*4"))
PROMPTS = (
    "clear red brick maze at day",
    "a green hedge maze at dusk",
    "a foggy blue stone maze at night",
)


def main() -> None:
    """Begins three walks, the last one later, and steers them together."""
    pipeline = fdjax.runner_configs()["maze-world"].pipeline.setup()
    params = pipeline.load_params()

    def begin(seed: int) -> fdjax.Session:
        """A session that has made its first chunk, alone."""
        session = fdjax.Session(
            pipeline,
            params,
            conditions=pipeline.encode_conditions(params, text=[PROMPTS[seed]]),
            pixel_height=96,
            pixel_width=160,
            key=jax.random.key(seed),
        )
        session.tick(STRAIGHT[None])
        return session

    first, second = begin(0), begin(1)
    # [1, T, (forward, turn left)]: what one session's control looks like.
    batch = fdjax.SessionBatch(first, capacity=3, control=STRAIGHT[None])
    batch.join(first)
    batch.join(second)
    for _ in range(2):
        batch.tick({first: STRAIGHT, second: LEFT})

    third = begin(2)
    batch.join(third)
    # Who is not named stays as it is: the second one waits.
    batch.tick({first: STRAIGHT, third: RIGHT})
    made = batch.tick({first: LEFT, second: STRAIGHT, third: RIGHT})
    print("chunks made:", [each.committed_step_id for each in batch.sessions])

    # One goes back; the others do not notice. The same step is the same to the bit.
    before = np.asarray(made[first])
    first.undo()
    again = batch.tick({first: LEFT, second: RIGHT})
    print("made again to the bit:", np.array_equal(again[first], before))

    # And out of the batch: it goes on alone.
    batch.leave(third)
    third.tick(STRAIGHT[None])
    print("lanes that are free:", batch.num_free)

    rows = [to_uint8(made[each])[0] for each in (first, second, third)]
    OUTPUT.parent.mkdir(exist_ok=True)
    # [T, H, W, 3] of each walker -> T pictures side by side
    iio.imwrite(OUTPUT, np.concatenate([np.concatenate(row, axis=1) for row in rows]))
    print(f"Wrote {OUTPUT}.")


if __name__ == "__main__":
    main()
