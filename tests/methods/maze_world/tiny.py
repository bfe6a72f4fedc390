"""A small network of maze-world's kind."""

from fdjax_models.methods.maze_world import text
from fdjax_models.methods.maze_world.encoder import NUM_FEATURES
from fdjax_models.networks.wan_dit.config import WanDiTConfig

NETWORK = WanDiTConfig(
    dim=24,
    ffn_dim=32,
    num_heads=2,
    num_layers=2,
    in_dim=4,
    out_dim=4,
    text_dim=8,
    text_len=text.NUM_SLOTS,
    vector_feature_dim=NUM_FEATURES,
    freq_dim=16,
    dtype="float32",
    param_dtype="float32",
)
