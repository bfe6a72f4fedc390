"""A tiny Wan DiT with the published keys, its weights filled by name."""

import dataclasses
import functools

import jax
import numpy as np

from fdjax_convert.rules import convert
from fdjax_convert.tables import wan_dit
from fdjax_models.networks.wan_dit.config import WanDiTConfig
from fdjax_models.networks.wan_dit.dit import init_params
from tests import golden

CONFIG = WanDiTConfig(
    dim=48,
    ffn_dim=64,
    num_heads=2,
    num_layers=2,
    text_dim=16,
    text_len=8,
    dtype="float32",
    param_dtype="float32",
)


def official_shapes(config: WanDiTConfig) -> dict[str, tuple[int, ...]]:
    """Every key of a published checkpoint of these sizes, and its shape."""
    dim, ffn = config.dim, config.ffn_dim
    linears = {
        "text_embedding.0": (dim, config.text_dim),
        "text_embedding.2": (dim, dim),
        "time_embedding.0": (dim, config.freq_dim),
        "time_embedding.2": (dim, dim),
        "time_projection.1": (6 * dim, dim),
        "head.head": (4 * config.out_dim, dim),
    }
    norms = {}
    other = {
        "patch_embedding.weight": (dim, config.in_dim, 1, 2, 2),
        "patch_embedding.bias": (dim,),
        "head.modulation": (1, 2, dim),
    }
    if config.image_dim:
        linears["img_emb.proj.1"] = (config.image_dim, config.image_dim)
        linears["img_emb.proj.3"] = (dim, config.image_dim)
        norms["img_emb.proj.0"] = (config.image_dim, True)
        norms["img_emb.proj.4"] = (dim, True)
    if config.control_dim:
        linears["patch_embedding_wancamctrl"] = (dim, 4 * config.control_dim)
        linears["c2ws_hidden_states_layer1"] = (dim, dim)
        linears["c2ws_hidden_states_layer2"] = (dim, dim)
    for number in range(config.num_layers):
        block = f"blocks.{number}"
        other[f"{block}.modulation"] = (1, 6, dim)
        linears[f"{block}.ffn.0"] = (ffn, dim)
        linears[f"{block}.ffn.2"] = (dim, ffn)
        norms[f"{block}.norm3"] = (dim, True)
        square = [f"{attn}_attn.{p}" for attn in ("self", "cross") for p in "qkvo"]
        scales = [f"{attn}_attn.norm_{p}" for attn in ("self", "cross") for p in "qk"]
        if config.image_dim:
            square += ["cross_attn.k_img", "cross_attn.v_img"]
            scales += ["cross_attn.norm_k_img"]
        if config.control_dim:
            square += ["cam_injector_layer1", "cam_injector_layer2"]
            square += ["cam_scale_layer", "cam_shift_layer"]
        linears |= {f"{block}.{name}": (dim, dim) for name in square}
        norms |= {f"{block}.{name}": (dim, False) for name in scales}
    shapes = dict(other)
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name, (width, has_bias) in norms.items():
        shapes[f"{name}.weight"] = (width,)
        if has_bias:
            shapes[f"{name}.bias"] = (width,)
    return shapes


def checkpoint(config: WanDiTConfig, prefix: str = "") -> dict[str, np.ndarray]:
    """Published tensors of a network of these sizes, filled by `prefix` + key."""
    return {
        key: golden.fill_weight(prefix + key, shape)
        for key, shape in official_shapes(config).items()
    }


def params(config: WanDiTConfig, source=None, rules=wan_dit.OFFICIAL):
    """Parameters from `source`, or from `checkpoint`."""
    init = functools.partial(init_params, config)
    shapes = jax.eval_shape(init, jax.random.key(0))
    source = checkpoint(config) if source is None else source

    return jax.tree.map(jax.numpy.asarray, convert(source, rules, shapes))


def commit(transformer, params, cache, clean, control, timestep=0.0):
    """The cache with a clean chunk committed that was never denoised."""
    workspace = transformer.start(params, cache, control)
    _, residue = transformer.release(workspace)
    timestep = jax.numpy.float32(timestep)
    return transformer.commit(params, cache, residue, clean, timestep)


def video(latent: np.ndarray) -> jax.Array:
    """[T, C, H, W] or [B, T, C, H, W] to float32[B, T, H, W, C]."""
    latent = latent if latent.ndim == 5 else latent[None]
    return jax.numpy.asarray(np.moveaxis(latent, 2, -1), jax.numpy.float32)


def published(latent: jax.Array) -> np.ndarray:
    """[1, T, H, W, C] to [T, C, H, W]."""
    return np.moveaxis(np.asarray(latent), -1, 2)[0]


IMAGE_CONFIG = dataclasses.replace(CONFIG, in_dim=36, image_dim=1280)
LINGBOT_CONFIG = dataclasses.replace(CONFIG, in_dim=36, control_dim=384)
