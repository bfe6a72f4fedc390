"""The compiler's settings of a process, for command lines: no library call makes them.

The flags were measured to help; docs/performance.md has the figures.
"""

import logging
import os

import jax

from fdjax.checkpoint import files

DEFAULTS = {"--xla_gpu_enable_triton_gemm": "false"}
"""Leaves matrix products to cuBLAS, which fuses the MLP's GELU into one, and spares the
search for a faster kernel, which found none: less time per chunk, and to compile."""

MEMORY_FRACTION = "0.94"
"""Of a GPU's memory, for jax to take at the start. Its own default of 0.75 leaves out
the 14B models that fit the card; the rest is for CUDA and its libraries."""

_log = logging.getLogger(__name__)
_TESTED = (0, 12)  # XLA ends the process at a flag that it does not know


def with_defaults(flags: str) -> str:
    """`XLA_FLAGS` with the defaults that it does not set itself."""
    if jax.__version_info__ >= _TESTED:
        return flags
    names = {flag.partition("=")[0] for flag in flags.split()}
    missing = [f"{name}={DEFAULTS[name]}" for name in DEFAULTS if name not in names]
    return " ".join([*flags.split(), *missing])


def set_defaults() -> None:
    """Sets them for this process; they count if no device has been used yet."""
    os.environ["XLA_FLAGS"] = with_defaults(os.environ.get("XLA_FLAGS", ""))
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", MEMORY_FRACTION)


def enable_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that the next process need not compile.

    In `FDJAX_CACHE_DIR/xla` (`~/.cache/fdjax/xla`), unless jax was given another place.
    Where that cannot be written, one warning says so, and not one for each program.
    """
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        try:
            folder = files.cache_folder("xla")
        except OSError as error:
            _log.warning("Compiled programs are not kept: %s.", error.strerror or error)
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def compile_quickly() -> None:
    """Leaves out most of the compiler's work, for programs that run only briefly.

    2.6 times less processor time for tiny pipelines (jax 0.10.2, 2 cores).
    """
    jax.config.update("jax_disable_most_optimizations", True)
