"""8-bit floats with scales, and what else stands beside the weights of such files.

`X.weight` in a float8 type, and beside it the number or numbers that its values are to
be multiplied with:

    X.scale_weight                  ComfyUI's scaled fp8
    X.weight_scale                  ModelOpt, compressed-tensors, vLLM, ComfyUI
    X.weight_scale_inv              DeepSeek-V3: one for each block of 128 x 128

One number is for the whole tensor, [out] or [out, 1] is one for each row, a matrix one
for each block. The product is made in float32.
"""

import functools
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fdjax.checkpoint.tensors import LazyTensor, is_float
from fdjax_convert.rules.problems import Problems

_BLOCK = 128  # rows and columns: weight_block_size of DeepSeek-V3's config.json

_SCALES = ("scale_weight", "weight_scale", "weight_scale_inv")
_OF_ACTIVATIONS = (
    "scale_input",
    "input_scale",
    "scale_output",
    "output_scale",
    "input_scale_ub",
    "activation_scale",
)
_MARKERS = ("scaled_fp8", "comfy_quant")


def apply_scales(
    path: Path, tensors: Mapping[str, LazyTensor]
) -> tuple[dict[str, LazyTensor], tuple[str, ...]]:
    """Multiplies 8-bit floats with the scales that stand beside them, when read.

    Returns:
        The tensors, scales and markers left out; what was left out, in words.

    Raises:
        ConversionError: A scale does not suit its tensor; names all of them.
    """
    left = dict(tensors)
    beside: list[str] = []
    problems = Problems()
    for key, tensor in tensors.items():
        start, _, name = key.rpartition(".")
        weight = f"{start}.weight" if start else "weight"
        if name in _MARKERS:
            beside.append(f"{key}: marks the tensors as scaled")
        elif name in _OF_ACTIVATIONS and weight in tensors:
            beside.append(f"{key}: of activations, which are not quantised here")
        elif name in _SCALES and weight in tensors:
            if left[weight] is not tensors[weight]:
                problems.add(key, "is a second scale of one tensor")
            if what := _unsuitable(tensors[weight], tensor, name):
                problems.add(key, what)
                continue
            blocks = _blocks(tensors[weight].shape, tensor.shape, name)
            left[weight] = _scaled(tensors[weight], tensor, blocks)
            beside.append(f"{key}: multiplied with {weight}")
        else:
            continue
        del left[key]
    problems.check(f"{path} is a quantised checkpoint that cannot be read")
    return left, tuple(beside)


def _unsuitable(weight: LazyTensor, scale: LazyTensor, name: str) -> str:
    """What is wrong with a scale; "" if nothing is."""
    if not is_float(weight.dtype):
        return (
            f"scales {weight.dtype}, a quantised checkpoint: take the published float "
            "weights"
        )
    if not is_float(scale.dtype):
        return f"must be floating, is {scale.dtype}"
    if weight.dtype.itemsize > 1:
        if scale.size != 1 or float(scale.read().reshape(())) != 1:
            return f"scales {weight.dtype}, must scale an 8-bit float"
    elif _blocks(weight.shape, scale.shape, name) is None:
        return f"{list(scale.shape)} does not suit a weight of {list(weight.shape)}"
    return ""


def _blocks(
    weight: tuple[int, ...], scale: tuple[int, ...], name: str
) -> tuple[int, ...] | None:
    """The sizes of the part of a weight that one scale is for; None if it cannot be."""
    if math.prod(scale) == 1:
        return weight
    if not weight or len(scale) > len(weight):
        return None
    scale = (*scale, *(1,) * (len(weight) - len(scale)))
    if name.endswith("_inv"):
        counts = tuple(
            1 if found == 1 else -(-size // _BLOCK)
            for size, found in zip(weight, scale, strict=True)
        )
        sizes = tuple(
            size if found == 1 else _BLOCK
            for size, found in zip(weight, scale, strict=True)
        )
        return sizes if counts == scale else None
    if any(not n or size % n for size, n in zip(weight, scale, strict=True)):
        return None
    return tuple(size // n for size, n in zip(weight, scale, strict=True))


def _scaled(
    weight: LazyTensor, scale: LazyTensor, blocks: tuple[int, ...] | None
) -> LazyTensor:
    def release() -> None:
        weight.release()
        scale.release()

    load = functools.partial(_multiply, weight, scale, blocks)
    return LazyTensor(weight.shape, np.dtype(np.float32), load, release)


def _multiply(
    weight: LazyTensor, scale: LazyTensor, blocks: tuple[int, ...] | None
) -> np.ndarray:
    """float32[weight.shape]: the values, each times the scale of its block."""
    values = weight.read().astype(np.float32)
    factors = scale.read().astype(np.float32)
    if factors.size == 1 or blocks is None:
        return values * factors.reshape(())
    factors = factors.reshape(*factors.shape, *(1,) * (values.ndim - factors.ndim))
    for axis, (size, block) in enumerate(zip(values.shape, blocks, strict=True)):
        if 1 < block < size:
            factors = np.repeat(factors, block, axis).take(range(size), axis)
    return values * factors
