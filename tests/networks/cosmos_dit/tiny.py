"""Tiny Cosmos DiTs with the published keys, and layouts of views."""

import functools

import jax
import numpy as np

from fdjax_convert.rules import convert
from fdjax_convert.tables import cosmos_dit
from fdjax_models.networks.cosmos_dit.config import CosmosDiTConfig
from fdjax_models.networks.cosmos_dit.dit import init_params

CONFIG = CosmosDiTConfig(
    dim=64,
    ffn_dim=256,
    num_heads=2,
    num_layers=2,
    text_dim=20,
    text_len=5,
    context_dim=24,
    lora_dim=8,
    dtype="float32",
    param_dtype="float32",
)


def published_shapes(config: CosmosDiTConfig) -> dict[str, tuple[int, ...]]:
    """Every key of a published checkpoint of these sizes, and its shape."""
    dim, rank, latent = config.dim, config.lora_dim, 4 * config.out_dim
    head = (dim // config.num_heads,)
    shapes = {
        "x_embedder.proj.1.weight": (dim, latent + 8),
        "t_embedder.1.linear_1.weight": (dim, dim),
        "t_embedder.1.linear_2.weight": (3 * dim, dim),
        "t_embedding_norm.weight": (dim,),
        "final_layer.linear.weight": (latent, dim),
        "final_layer.adaln_modulation.1.weight": (rank, dim),
        "final_layer.adaln_modulation.2.weight": (2 * dim, rank),
        "crossattn_proj.0.weight": (config.context_dim, config.text_dim),
        "crossattn_proj.0.bias": (config.context_dim,),
    }
    if config.control_dim:
        features = 4 * config.control_dim
        shapes["additional_patch_embedding.proj.1.weight"] = (dim, features)
    attentions = {"self_attn": dim, "cross_attn": config.context_dim}
    if config.num_cameras:
        shapes["adaln_view_embedder.weight"] = (config.num_cameras, dim)
        shapes["adaln_view_proj.weight"] = (9 * dim, dim)
        shapes["adaln_view_proj.bias"] = (9 * dim,)
        attentions["cross_view_attn"] = dim
    for number in range(config.num_layers):
        block = f"blocks.{number}"
        shapes[f"{block}.mlp.layer1.weight"] = (config.ffn_dim, dim)
        shapes[f"{block}.mlp.layer2.weight"] = (dim, config.ffn_dim)
        for name, width in attentions.items():
            for part, columns in zip(
                ("q", "k", "v", "output"), (dim, width, width, dim), strict=True
            ):
                shapes[f"{block}.{name}.{part}_proj.weight"] = (dim, columns)
            shapes[f"{block}.{name}.q_norm.weight"] = head
            shapes[f"{block}.{name}.k_norm.weight"] = head
        for name in ("self_attn", "cross_attn", "mlp"):
            modulation = f"{block}.adaln_modulation_{name}"
            shapes[f"{modulation}.1.weight"] = (rank, dim)
            shapes[f"{modulation}.2.weight"] = (3 * dim, rank)
        if config.num_cameras:
            shapes[f"{block}.layer_norm_cross_view_attn.weight"] = (dim,)
            shapes[f"{block}.layer_norm_cross_view_attn.bias"] = (dim,)
    return shapes


def wave(shape, k: int, amplitude: float = 1.0) -> np.ndarray:
    """amplitude sin(0.7 j + k) over the flat index j = 1, 2, …"""
    flat = np.arange(1, int(np.prod(shape)) + 1, dtype=np.float64)
    return (amplitude * np.sin(0.7 * flat + k)).reshape(shape).astype(np.float32)


def checkpoint(config: CosmosDiTConfig) -> dict[str, np.ndarray]:
    """Published tensors: waves numbered by sorted key, norms around one."""
    shapes = published_shapes(config)
    return {
        key: wave(shapes[key], number, 0.1)
        + np.float32(
            key.endswith("norm.weight") or "layer_norm_cross_view_attn.weight" in key
        )
        for number, key in enumerate(sorted(shapes))
    }


def target(config: CosmosDiTConfig):
    """Shapes of the parameters."""
    return jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))


def params(config: CosmosDiTConfig, source=None, rules=cosmos_dit.RULES):
    """Parameters from `source`, or from `checkpoint`."""
    source = checkpoint(config) if source is None else source
    return jax.tree.map(jax.numpy.asarray, convert(source, rules, target(config)))


def side_by_side(latent: np.ndarray) -> jax.Array:
    """[B, V, T, C, H, W] to [B, T, H, V W, C]."""
    batch, views, frames, channels, height, width = latent.shape
    # [B, T, H, V, W, C]
    x = latent.transpose(0, 2, 4, 1, 5, 3)
    return jax.numpy.asarray(x.reshape(batch, frames, height, views * width, channels))


def by_view(latent: jax.Array, num_views: int) -> np.ndarray:
    """The inverse of `side_by_side`."""
    batch, frames, height, width, channels = latent.shape
    shape = batch, frames, height, num_views, width // num_views, channels
    return np.asarray(latent).reshape(shape).transpose(0, 3, 1, 5, 2, 4)
