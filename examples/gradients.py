"""Which way did the camera turn? Gradients through a step of generation.

python examples/gradients.py

`generate` is a pure function, so `jax.grad` goes through all of it: decoder, denoising
loop, transformer and control encoder. A chunk is made with a turn that is then
forgotten, and found again by descending the difference between two videos. Keys are 0
or 1 in training; here the control is a real number. Two minutes on two processor cores,
most of it to compile.
"""

import jax
import jax.numpy as jnp

import fdjax
from fdjax_models.methods.maze_world import runner, text

PROMPT = "clear red brick maze at day"
TRUE_TURN = 0.7  # 1 is the key "a" held, a turn to the left; -1 is "d"
NUM_STEPS = 6
# The other way, so that descent has to cross zero.
FIRST_GUESS = -0.25


def main() -> None:
    """Makes a target, and finds the turn that made it."""
    pipeline = fdjax.runner_configs()["maze-world"].pipeline.setup()
    params = pipeline.load_params()
    image = runner.start_image(5, text.tokenize_prompt(PROMPT))
    cache = pipeline.initialize_cache(
        params, text=[PROMPT], image=image, key=jax.random.key(0)
    )
    # The first chunk shows the start image and takes no control.
    cache, _ = pipeline.generate(params, cache)
    cache = pipeline.finalize(params, cache)

    def video_of(turn: jax.Array) -> jax.Array:
        """The next chunk if all of it turns at this rate.  float32[B, T, H, W, 3]."""
        # [B, T, (forward, turn left)]
        control = jnp.zeros((1, 4, 2)).at[:, :, 1].set(turn)
        return pipeline.generate(params, cache, control)[1]

    target = video_of(jnp.float32(TRUE_TURN))

    @jax.jit
    def loss_and_gradient(turn: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.value_and_grad(lambda x: jnp.mean((video_of(x) - target) ** 2))(turn)

    # The loss is not convex: steps take the gradient's sign (Riedmiller & Braun 1993),
    # and are halved when it changes.
    turn, step, before = jnp.float32(FIRST_GUESS), 0.4, None
    best = turn, jnp.inf
    for number in range(NUM_STEPS):
        loss, gradient = loss_and_gradient(turn)
        print(
            f"step {number}: turn {turn:+.3f}  loss {loss:.5f}  slope {gradient:+.4f}"
        )
        best = min(best, (turn, loss), key=lambda pair: pair[1])
        if before is not None and jnp.sign(gradient) != before:
            step /= 2
        before = jnp.sign(gradient)
        turn = turn - step * before
    print(f"found {best[0]:+.2f}, made with {TRUE_TURN:+.2f}")


if __name__ == "__main__":
    main()
