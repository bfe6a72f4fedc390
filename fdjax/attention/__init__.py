"""Attention against a streaming cache: layout, rotary positions, kernels."""

from fdjax.attention.kv_cache import KVCache, KVLayout
from fdjax.attention.rope import (
    Rope3D,
    RopeTable,
    axis_frequencies,
    rope_table,
    rotate,
)

__all__ = [
    "KVCache",
    "KVLayout",
    "Rope3D",
    "RopeTable",
    "axis_frequencies",
    "rope_table",
    "rotate",
]
