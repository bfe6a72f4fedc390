"""The Cosmos DiT against `diffusers.CosmosTransformer3DModel`: forward, its keys."""

import dataclasses
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax.contract.conditioner import Conditions
from fdjax_convert.rules import to_torch
from fdjax_convert.tables import cosmos_dit
from fdjax_convert.tables.layouts import detect
from fdjax_models.networks.cosmos_dit.transformer import CosmosTransformerConfig
from fdjax_models.networks.wan_dit.control import ImageControl
from tests import golden
from tests.networks.cosmos_dit import tiny
from tests.parity import imports
from tests.parity.comparison import assert_close

torch = imports.lazy("torch")
diffusers = imports.lazy("diffusers")

pytestmark = imports.requires("torch", "diffusers")

CONFIG = dataclasses.replace(tiny.CONFIG, dim=96, num_heads=3, num_layers=3, text_len=6)
SIZE = (3, 6, 4)  # T, H, W
TIMESTEP = 737.0


def _reference(config):
    """diffusers' network of these sizes with weights filled by name."""
    model = diffusers.CosmosTransformer3DModel(
        in_channels=config.out_dim + 1,
        out_channels=config.out_dim,
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        num_layers=config.num_layers,
        mlp_ratio=config.ffn_dim / config.dim,
        text_embed_dim=config.context_dim,
        adaln_lora_dim=config.lora_dim,
        rope_scale=(1.0, 3.0, 3.0),
        extra_pos_embed_type=None,
        use_crossattn_projection=True,
        crossattn_proj_in_channels=config.text_dim,
        encoder_hidden_states_channels=config.context_dim,
    )
    state = {
        key: torch.from_numpy(golden.fill_weight(key, tuple(value.shape)))
        for key, value in model.state_dict().items()
    }
    model.load_state_dict(state)
    return model.eval(), {key: value.numpy() for key, value in state.items()}


# Of torchvision, which need not be installed: resizes the padding mask, all zero.
TRANSFORMS = types.SimpleNamespace(
    InterpolationMode=types.SimpleNamespace(NEAREST="nearest"),
    functional=types.SimpleNamespace(
        resize=lambda mask, size, interpolation: mask.new_zeros(*mask.shape[:2], *size)
    ),
)


def _expected(model, x, mask, timesteps, text):
    module = "diffusers.models.transformers.transformer_cosmos"
    with (
        torch.no_grad(),
        mock.patch(f"{module}.transforms", TRANSFORMS, create=True),
    ):
        flow = model(
            torch.from_numpy(x),
            torch.from_numpy(timesteps),
            torch.from_numpy(text),
            condition_mask=torch.from_numpy(mask),
            padding_mask=torch.zeros(1, 1, 48, 32),
            return_dict=False,
        )[0]
    return flow.numpy()


@pytest.mark.parametrize("image", [False, True], ids=["t2v", "i2v"])
def test_flow(image):
    model, state = _reference(CONFIG)
    (layout,) = detect(state)
    assert (layout.name, layout.architecture) == ("diffusers", "cosmos_dit")
    params = tiny.params(CONFIG, state, layout.rules)
    transformer = CosmosTransformerConfig(
        network=CONFIG, len_t=3, window_size_t=3, conditional_frame_timestep=0.1
    ).setup()
    batch = 2
    x = golden.fill_input("x", (batch, CONFIG.out_dim, *SIZE))
    text = golden.fill_input("text", (batch, CONFIG.text_len, CONFIG.text_dim))
    given = golden.fill_input("given", (batch, CONFIG.out_dim, 1, *SIZE[1:]))
    mask = np.zeros((batch, 1, *SIZE), np.float32)
    timesteps = np.full((batch, 1, SIZE[0], 1, 1), TIMESTEP, np.float32)
    seen, control = x.copy(), None
    if image:
        mask[:, :, 0], timesteps[:, :, 0] = 1, 0.1
        seen[:, :, :1] = given
        control = ImageControl(latent=_video(seen), mask=_video(mask))
    expected = _expected(model, seen, mask, timesteps * np.float32(0.001), text)

    conditions = Conditions(text=jnp.asarray(text))
    cache = transformer.initialize_cache(params, conditions, *SIZE[1:])
    workspace = transformer.start(params, cache, control)
    tokens = transformer.patchify(_video(x))
    _, flow = transformer.predict_flow(params, workspace, tokens, jnp.float32(TIMESTEP))
    result = transformer.unpatchify(flow, cache)
    assert_close(np.moveaxis(result, -1, 1), expected)


def test_keys_there_and_back():
    _, state = _reference(CONFIG)
    params = tiny.params(CONFIG, state, cosmos_dit.DIFFUSERS)
    exported = to_torch(params, cosmos_dit.DIFFUSERS)
    patch = "patch_embed.proj.weight"
    # Zeros for the padding mask's columns, which are not kept.
    assert not exported[patch][:, -4:].any()
    state[patch] = np.concatenate([state[patch][:, :-4], exported[patch][:, -4:]], -1)
    jax.tree.map(np.testing.assert_array_equal, exported, state)


def _video(latent):
    """[B, C, T, H, W] to [B, T, H, W, C]."""
    return jnp.moveaxis(jnp.asarray(latent), 1, -1)
