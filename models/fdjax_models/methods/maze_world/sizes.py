"""Sizes of maze-world's networks, chosen for two CPU cores and 16 MB of weights."""

from fdjax_models.methods.maze_world import text
from fdjax_models.methods.maze_world.encoder import NUM_FEATURES
from fdjax_models.networks.taehv.decoder import TaehvDecoderConfig
from fdjax_models.networks.taehv.encoder import TaehvEncoderConfig
from fdjax_models.networks.wan_dit.config import WanDiTConfig

LATENT_CHANNELS = 16
LATENT_HEIGHT, LATENT_WIDTH = 12, 20
"""Latent rows and columns of a 96 x 160 video; 60 tokens after patching."""
PIXEL_HEIGHT, PIXEL_WIDTH = 8 * LATENT_HEIGHT, 8 * LATENT_WIDTH
WINDOW_CHUNKS = 16
"""Chunks that self-attention sees: 5.3 seconds."""


def weights_path(part: str) -> str:
    """Returns where the package keeps the weights of a part."""
    return f"package://fdjax_models.methods.maze_world/weights/{part}.safetensors"


# 60 tokens a chunk and 16 chunks in the window make 960 keys.
NETWORK = WanDiTConfig(
    dim=256,
    ffn_dim=1024,
    num_heads=4,
    num_layers=6,
    in_dim=LATENT_CHANNELS,
    out_dim=LATENT_CHANNELS,
    text_dim=64,
    text_len=text.NUM_SLOTS,
    vector_feature_dim=NUM_FEATURES,
    freq_dim=128,
    dtype="float32",
    param_dtype="float32",
)
"""A Wan DiT of 6.9 M parameters."""

# Full-resolution convolutions are avoided: the last stage works on 2 x 2 pixels.
ENCODER = TaehvEncoderConfig(
    widths=(32, 64, 64),
    # With the patch 8 x 8 pixels and 4 frames a latent pixel, as Wan's own VAE.
    spatial_scales=(2, 2),
    temporal_scales=(2, 2),
    latent_channels=LATENT_CHANNELS,
    patch=2,
    blocks_per_stage=1,
    causal=True,
    dtype="float32",
    checkpoint_path=weights_path("encoder"),
)
DECODER = TaehvDecoderConfig(
    widths=(64, 64, 32, 32),
    spatial_scales=(2, 2, 1),
    temporal_scales=(1, 2, 2),
    latent_channels=LATENT_CHANNELS,
    patch=2,
    blocks_per_stage=1,
    dtype="float32",
    checkpoint_path=weights_path("decoder"),
)
