"""Tables of rules between published tensors and Flax parameters, in both directions."""

from fdjax_convert.rules.conversion import Conversion, convert
from fdjax_convert.rules.export import export, to_torch
from fdjax_convert.rules.rules import Drop, Layout, Rule, has_keys, layer, norm

__all__ = [
    "Conversion",
    "Drop",
    "Layout",
    "Rule",
    "convert",
    "export",
    "has_keys",
    "layer",
    "norm",
    "to_torch",
]
