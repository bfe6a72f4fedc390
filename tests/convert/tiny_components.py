"""A tiny component of every architecture that the converters know."""

import dataclasses
import functools

import jax
import numpy as np

from fdjax_convert import rules
from fdjax_convert.tables import layouts
from fdjax_models.networks.clip import ClipImageEncoderConfig
from fdjax_models.networks.cosmos_dit.config import CosmosDiTConfig
from fdjax_models.networks.cosmos_dit.transformer import CosmosTransformerConfig
from fdjax_models.networks.cosmos_reason1 import CosmosReason1EncoderConfig
from fdjax_models.networks.taehv.decoder import TaehvDecoderConfig
from fdjax_models.networks.taehv.encoder import TaehvEncoderConfig
from fdjax_models.networks.umt5 import Umt5TextEncoderConfig
from fdjax_models.networks.wan_dit.config import WanDiTConfig
from fdjax_models.networks.wan_dit.transformer import WanTransformerConfig
from fdjax_models.networks.wan_vae.vae import WanVaeDecoderConfig, WanVaeEncoderConfig

DIT = WanDiTConfig(
    dim=48, ffn_dim=64, num_heads=2, num_layers=3, text_dim=16, text_len=8
)
UMT5 = {
    "vocab_size": 40,
    "width": 16,
    "mlp_dim": 24,
    "num_layers": 2,
    "num_heads": 2,
    "head_dim": 8,
}
CLIP = {
    "image_size": 28,
    "width": 16,
    "mlp_dim": 32,
    "num_layers": 2,
    "output_layer": 1,
    "num_heads": 2,
}
COSMOS_REASON1 = {
    "vocab_size": 40,
    "width": 16,
    "mlp_dim": 24,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
}
COSMOS_DIT = CosmosDiTConfig(
    dim=32,
    ffn_dim=64,
    num_heads=2,
    num_layers=2,
    text_dim=20,
    text_len=5,
    context_dim=24,
    lora_dim=8,
)
WIDE_TRANSFORMER = WanTransformerConfig(
    network=dataclasses.replace(DIT, dim=96, num_heads=4)
)
_VAE22 = {"residual_stages": True, "patch": 2}
CONFIGS = {
    "wan_dit": WanTransformerConfig(network=DIT),
    "wan_vae_encoder": WanVaeEncoderConfig(widths=(4, 8, 8, 8)),
    "wan_vae_decoder": WanVaeDecoderConfig(widths=(4, 8, 8, 8)),
    "wan_vae_encoder 2.2": WanVaeEncoderConfig(widths=(4, 8, 8, 8), **_VAE22),
    "wan_vae_decoder 2.2": WanVaeDecoderConfig(widths=(4, 8, 8, 8), **_VAE22),
    "taehv_encoder": TaehvEncoderConfig(widths=(8, 8, 8, 8)),
    "taehv_decoder": TaehvDecoderConfig(widths=(16, 8, 8, 8)),
    "umt5": Umt5TextEncoderConfig(**UMT5),
    "clip": ClipImageEncoderConfig(**CLIP),
    "cosmos_dit": CosmosTransformerConfig(network=COSMOS_DIT),
    "cosmos_reason1": CosmosReason1EncoderConfig(**COSMOS_REASON1),
}


def config_of(layout):
    """The tiny config that a layout's checkpoints are for."""
    wanted = f"{layout.architecture} {layout.name.split()[-1]}"
    return CONFIGS.get(wanted, CONFIGS[layout.architecture])


@functools.cache
def random_params(config, dtype="float32"):
    """Random values for every leaf."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape, np.float32).astype(
            jax.numpy.dtype(dtype)
        ),
        config.setup().param_shapes(),
    )


def published(layout, dtype="float32"):
    """A published checkpoint of a layout, as arrays by key."""
    return published_params(config_of(layout), layout, dtype)


def published_params(config, layout, dtype="float32"):
    """A published checkpoint of a config."""
    return rules.to_torch(random_params(config, dtype), layout.rules)


ALL = layouts.layouts()
