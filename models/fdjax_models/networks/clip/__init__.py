"""CLIP, the image encoder of Wan 2.1 I2V."""

from fdjax_models.networks.clip.encoder import ClipImageEncoder, ClipImageEncoderConfig

__all__ = ["ClipImageEncoder", "ClipImageEncoderConfig"]
