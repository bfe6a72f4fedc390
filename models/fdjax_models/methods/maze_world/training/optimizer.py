"""The optimizer of the diffusion transformer."""

from typing import Any

import jax
import optax
from optax import contrib

from fdjax.axes import Params


def make_optimizer() -> optax.GradientTransformation:
    """Returns Muon for the kernels inside networks, AdamW for everything else.

    Muon (Jordan et al. 2024) with updates of the size of Adam's (arXiv:2502.16982), so
    that both follow one schedule; AdamW takes half of its rate. The rate itself is
    applied by the caller: updates are for a rate of 1.
    """

    def dimensions(params: Params) -> Params:
        def of(path: Any, leaf: Any) -> Any:
            names = [part.key for part in path]
            # Muon is for hidden layers: the first and the last one follow AdamW.
            is_inside = any("block" in n or "stage" in n for n in names)
            if names[-1] != "kernel" or not is_inside:
                return None
            # A convolution is one matrix, from all it sees to its outputs.
            *reduced, output = range(leaf.ndim)
            return contrib.MuonDimensionNumbers(tuple(reduced), output)

        return jax.tree_util.tree_map_with_path(of, params)

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        contrib.muon(
            1.0,
            adam_learning_rate=0.5,
            weight_decay=0.02,
            adam_b2=0.98,
            muon_weight_dimension_numbers=dimensions,
            # The size of Adam's updates, as arXiv:2502.16982 found it.
            consistent_rms=0.2,
        ),
    )


def apply(params: Params, updates: Params, rate: jax.Array) -> Params:
    """Returns the weights after a step of size `rate`."""
    return jax.tree.map(lambda p, u: p + rate * u, params, updates)
