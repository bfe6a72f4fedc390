"""How far two orders of the same sums may differ: tolerances that fit any processor.

Instruction sets, libraries and thread counts add the terms of a reduction in orders of
their own. A tolerance read off one machine's result fails on the next one.
"""

import jax.numpy as jnp
import numpy as np

SAFETY = 4.0
"""What a computation may take, in units of eps * sqrt(length) * scale.

One sum of random terms, added one after another in float32, takes 0.5 of them at worst
over thousands of outputs, and blockwise sums less (`tests/fdjax/testing/`). The rest is
for chains: a layer's error passes through the layers above and meets theirs. An error
of ten units is no round-off; it must be found, so this is well below ten.
"""


def tolerance(dtype: np.typing.DTypeLike, length: int, scale: float = 1.0) -> float:
    """The largest error that round-off explains: SAFETY * eps * sqrt(length) * scale.

    The errors of a sum's partial results are random in sign, so that they grow with the
    square root of their number, relative to the largest output.

    Args:
        dtype: Of the arithmetic: what partial sums and outputs are rounded to.
        length: Terms of the longest reduction: a convolution's fan-in, the head width
            or keys of an attention, 1 for arithmetic element by element. Where sums
            of outputs are compared, or steps that feed on one another: the product.
        scale: Largest absolute value of what is compared, or of what is subtracted to
            make it; 1 for a relative tolerance, as `assert_close` takes it.

    Raises:
        ValueError: `length` is below 1, or `scale` is negative or not finite.
    """
    if length < 1:
        raise ValueError(f"length must be >= 1, got {length}")
    if not 0 <= scale < np.inf:
        raise ValueError(f"scale must be finite and >= 0, got {scale}")
    return SAFETY * float(jnp.finfo(dtype).eps) * length**0.5 * float(scale)
