"""Attention against a streaming cache: layout, rotary positions, kernels."""

from fdjax.attention.attend import BACKENDS, attend, attend_with_lse, merge
from fdjax.attention.kv_cache import KVLayout
from fdjax.attention.rope import Rope3D, RopeTable, axis_frequencies, rope_table, rotate

__all__ = [
    "BACKENDS",
    "KVLayout",
    "Rope3D",
    "RopeTable",
    "attend",
    "attend_with_lse",
    "axis_frequencies",
    "merge",
    "rope_table",
    "rotate",
]
