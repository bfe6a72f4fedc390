"""UMT5, the text encoder of the Wan family."""

from fdjax_models.umt5.encoder import Umt5TextEncoder, Umt5TextEncoderConfig

__all__ = ["Umt5TextEncoder", "Umt5TextEncoderConfig"]
