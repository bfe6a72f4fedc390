"""What the default device can do, as far as a choice of kernels asks."""

import jax


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
