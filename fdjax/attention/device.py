"""What the default device can do, as far as a choice of kernels asks."""

import jax
import jax.numpy as jnp

from fdjax.axes import Array

_DTYPES = (jnp.bfloat16, jnp.float16)


def compute_capability() -> tuple[int, ...] | None:
    """That of the default device, or None where that is no NVIDIA GPU."""
    # None, the name of a platform, or a device.
    device = jax.config.jax_default_device  # type: ignore[attr-defined]
    if device is None or isinstance(device, str):
        device = jax.local_devices(backend=device)[0]
    # AMD's devices call themselves gpu, too; their platform is ROCm.
    if device.platform != "gpu" or "cuda" not in device.client.platform_version:
        return None
    return tuple(int(part) for part in device.compute_capability.split("."))


def no_kernel_reason(query: Array, key: Array, value: Array) -> str | None:
    """Why no kernel for NVIDIA GPUs can attend to these arrays, or None."""
    dtypes = {array.dtype for array in (query, key, value)}
    if len(dtypes) > 1 or query.dtype not in _DTYPES:
        names = ", ".join(sorted(str(dtype) for dtype in dtypes))
        return f"it needs bfloat16 or float16 throughout, got {names}"
    if compute_capability() is None:
        return "the default device is no NVIDIA GPU"
    return None


def head_reason(query: Array, value: Array, max_dim: int) -> str | None:
    """Why a kernel for heads up to `max_dim` cannot take these widths, or None."""
    head_dim = query.shape[-1]
    if head_dim != value.shape[-1] or head_dim % 8 or head_dim > max_dim:
        return (
            f"it needs one head width for all, a multiple of 8 up to {max_dim}, got "
            f"{head_dim} and {value.shape[-1]}"
        )
    return None
