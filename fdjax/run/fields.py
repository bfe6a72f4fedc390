"""What the fields of a run's config must be."""

import re
from typing import Any

from fdjax.run import devices

_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_LARGEST_SIDE = 16384  # pixels; what H.264 holds
_LARGEST_RATE = 1000  # frames per second
_ORIGINS = ("save_embeddings_path", "embeddings_path", "resume")


def check_fields(config: Any) -> None:
    """Refuses a `RunnerConfig` that no run can have.

    Raises:
        ValueError: Names the field, what it must be, and what it is.
    """
    if not _SLUG.fullmatch(config.runner_name):
        raise ValueError(
            "runner_name must be letters, digits, '.', '_' and '-', as it names "
            f"files and is typed in a shell; got {config.runner_name!r}."
        )
    limits = {
        "total_blocks": None,
        "fps": _LARGEST_RATE,
        "pixel_height": _LARGEST_SIDE,
        "pixel_width": _LARGEST_SIDE,
    }
    for name, limit in limits.items():
        value = getattr(config, name)
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
        if limit is not None and value > limit:
            raise ValueError(f"{name} must be at most {limit}, got {value}.")
    devices.check_texts(config.mesh, config.place)
    if config.compile_only and (config.mesh or config.place):
        raise ValueError(
            "compile_only compiles for one device; leave mesh and place out, or run."
        )
    given = [name for name in _ORIGINS if getattr(config, name) is not None]
    if len(given) > 1:
        raise ValueError(
            f"Give one of {' and '.join(given)}: each says where prompt and image "
            "come from, or go to."
        )
