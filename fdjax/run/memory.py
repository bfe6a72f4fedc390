"""What memory and which devices there are, and how large trees of arrays are."""

import contextlib
import math
import os
import pathlib
from collections.abc import Iterator

import jax

from fdjax.axes import PyTree

_CGROUP_LIMITS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)


def check_device() -> None:
    """Starts jax's devices.

    Raises:
        ValueError: There is none of the kind that is asked for.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0] or "it has no such device"
        asked = os.environ.get("JAX_PLATFORMS") or getattr(
            jax.config, "jax_platforms", ""
        )
        raise ValueError(
            f"jax cannot start on JAX_PLATFORMS={asked}: {reason}. Unset it, or "
            "install jax for that device, e.g. fdjax[cuda12] with NVIDIA's driver."
        ) from None


@contextlib.contextmanager
def on_host() -> Iterator[None]:
    """Arrays are made in the host's memory, if jax can have any there."""
    try:
        host = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves it out
        yield
        return
    with jax.default_device(host):
        yield


def num_bytes(tree: PyTree) -> int:
    """Size of all arrays of a tree, or of their shapes."""
    return sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )


def size_text(size: int) -> str:
    """Bytes for people: "28 MB", "11.4 GB"."""
    if size < 10**9:
        return f"{max(1, round(size / 1e6))} MB" if size else "0 MB"
    return f"{size / 1e9:.1f} GB" if size < 10**12 else f"{size / 1e12:,.1f} TB"


def device_memory(count: int = 1) -> tuple[int | None, str]:
    """Bytes that there are where arrays live, None if unknown, and the name of it.

    Args:
        count: Devices of which each is to hold its part.
    """
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    each = f"each of {count} devices, " if count > 1 else ""
    if device.platform != "cpu":
        return limit, f"{each}{device.device_kind}"
    # Devices of a CPU are simulated in one memory.
    host = host_memory()
    return host if host is None else host // count, f"{each}this machine"


def host_memory() -> int | None:
    """Bytes of memory that this process may use; None if the system does not tell."""
    limits = []
    with contextlib.suppress(ValueError, OSError, AttributeError):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in _CGROUP_LIMITS:
        with contextlib.suppress(ValueError, OSError):  # "max" is no limit
            limits.append(int(pathlib.Path(path).read_text("ascii")))
    return min(limits, default=None)
