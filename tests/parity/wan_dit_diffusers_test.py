"""The Wan DiT against `diffusers.WanTransformer3DModel`: bidirectional, its keys."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax.attention.rope import Rope3D, rope_table
from fdjax.streaming.attention import SelfContainedAttention
from fdjax.streaming.patches import patchify, unpatchify
from fdjax_convert.rules import to_torch
from fdjax_convert.tables import wan_dit
from fdjax_models.networks.wan_dit.config import WanDiTConfig
from fdjax_models.networks.wan_dit.dit import WanDiT
from fdjax_models.networks.wan_dit.time_embedding import TokenTimesteps
from tests import golden
from tests.networks.wan_dit import tiny
from tests.parity import imports
from tests.parity.comparison import assert_close

torch = imports.lazy("torch")
diffusers = imports.lazy("diffusers")

pytestmark = imports.requires("torch", "diffusers")

# text_len: diffusers takes all context tokens before the last 512 for image tokens.
PLAIN = dataclasses.replace(tiny.CONFIG, text_len=512, num_layers=3)
CONFIGS = {
    "t2v": PLAIN,
    "i2v": dataclasses.replace(PLAIN, in_dim=36, image_dim=32),
    "ti2v": dataclasses.replace(PLAIN, in_dim=8, out_dim=8, num_heads=3),
}
LATENT_SIZES = (3, 4, 6)  # T, H, W


def _reference(config: WanDiTConfig) -> "torch.nn.Module":
    """diffusers' network of these sizes with weights filled by name."""
    model = diffusers.WanTransformer3DModel(
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        in_channels=config.in_dim,
        out_channels=config.out_dim,
        text_dim=config.text_dim,
        freq_dim=config.freq_dim,
        ffn_dim=config.ffn_dim,
        num_layers=config.num_layers,
        image_dim=config.image_dim or None,
        added_kv_proj_dim=config.dim if config.image_dim else None,
    )
    state = {
        key: torch.from_numpy(golden.fill_weight(key, tuple(value.shape)))
        for key, value in model.state_dict().items()
    }
    model.load_state_dict(state)
    return model.eval()


def _flow(config: WanDiTConfig, params, x, timestep, text, image):
    """Our network, without a cache."""
    rope = Rope3D(head_dim=config.head_dim, interleaved=True)
    table = rope_table(rope.angles(jnp.arange(3), 2, 3), jnp.float32)
    attention = SelfContainedAttention(rope, table)
    network, variables = WanDiT(config), {"params": params}
    context = network.apply(variables, text, image, method="context")
    states = (None,) * config.num_layers
    _, flow = network.apply(
        variables, patchify(x, (1, 2, 2)), timestep, attention, states, context
    )
    return unpatchify(flow, LATENT_SIZES, (1, 2, 2))


@pytest.mark.parametrize("case", CONFIGS)
def test_flow(case):
    config = CONFIGS[case]
    model = _reference(config)
    batch = 2
    x = golden.fill_input("x", (batch, config.in_dim, *LATENT_SIZES))
    text = golden.fill_input("text", (batch, config.text_len, config.text_dim))
    text[1, 20:] = 0  # a short prompt; its padding takes part
    image = None
    if config.image_dim:
        image = golden.fill_input("img", (batch, 257, config.image_dim))
    timestep = np.array([999.0, 31.25], np.float32)
    ours = timestep
    if case == "ti2v":  # the first frame's tokens have one of their own: Wan 2.2 TI2V
        values = np.stack([timestep, np.zeros_like(timestep)], axis=1)
        second = np.arange(18) < 6
        ours = TokenTimesteps(values, np.broadcast_to(second, (batch, 18)))
        timestep = np.where(second, values[:, 1:], values[:, :1])
    with torch.no_grad():
        expected = model(
            torch.from_numpy(x),
            torch.from_numpy(timestep),
            torch.from_numpy(text),
            None if image is None else torch.from_numpy(image),
            return_dict=False,
        )[0].numpy()

    state = {key: value.numpy() for key, value in model.state_dict().items()}
    params = tiny.params(config, state, wan_dit.DIFFUSERS)
    result = jax.jit(_flow, static_argnums=0)(
        config, params, np.moveaxis(x, 1, -1), ours, text, image
    )
    assert_close(np.moveaxis(result, -1, 1), expected)
    exported = to_torch(params, wan_dit.DIFFUSERS)
    assert exported.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(exported[key], value, err_msg=key)
