"""UMT5, the text encoder of the Wan family."""

from fdjax_models.networks.umt5.encoder import Umt5TextEncoder, Umt5TextEncoderConfig

__all__ = ["Umt5TextEncoder", "Umt5TextEncoderConfig"]
