"""Random parameters for networks of convolutions, at the cost of one random draw."""

import itertools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.typing import DTypeLike

from fdjax.axes import Params


def init_conv_params(
    module: nn.Module, key: jax.Array, *args: Any, dtype: DTypeLike
) -> Params:
    """Random parameters that keep activations near unit scale.

    Kernels are uniform with variance one over their fan-in, biases zero, scales one.
    All values come from one draw: a draw per layer, as in `module.init`, makes a deep
    convolutional network compile for a minute.

    Args:
        module: Its parameters are named kernel, bias and scale.
        key: PRNG key.
        *args: Arguments of the module that reach all its parameters.
        dtype: dtype of the parameters.

    Returns:
        A nested dict.
    """
    tree = jax.eval_shape(module.init, jax.random.key(0), *args)["params"]
    shapes = {
        path: leaf.shape for path, leaf in traverse_util.flatten_dict(tree).items()
    }
    kernels = {path: shape for path, shape in shapes.items() if path[-1] == "kernel"}
    ends = list(itertools.accumulate(math.prod(shape) for shape in kernels.values()))
    draw = jax.random.uniform(key, (ends[-1],), minval=-1, maxval=1)
    params = {}
    for (path, shape), values in zip(
        kernels.items(), jnp.split(draw, ends[:-1]), strict=True
    ):
        bound = np.float32(math.sqrt(3 / math.prod(shape[:-1])))
        params[path] = (values.reshape(shape) * bound).astype(dtype)
    for path, shape in shapes.items():
        if path not in kernels:
            fill = {"bias": 0, "scale": 1}[path[-1]]
            params[path] = jnp.full(shape, fill, dtype)
    return traverse_util.unflatten_dict(params)
