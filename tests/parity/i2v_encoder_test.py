"""The control encoder of image-to-video against the reference's, over a rollout."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from fdjax.contract.conditioner import Conditions
from fdjax_convert import rules
from fdjax_convert.tables import wan_vae
from fdjax_models.networks.wan_dit.i2v_encoder import ImageControlEncoderConfig
from fdjax_models.networks.wan_vae import vae
from tests.parity import imports
from tests.parity.comparison import assert_allclose

torch = imports.lazy("torch")
reference_i2v = imports.lazy("flashdreams.recipes.wan.autoencoder.i2v")
reference_vae = imports.lazy("flashdreams.recipes.wan.autoencoder.vae")

pytestmark = imports.requires("torch", "flashdreams")

MEAN, STD = (0.3, -0.6), (2.0, 0.7)
VAE = vae.WanVaeEncoderConfig(
    widths=(4, 8, 16, 16), latent_mean=MEAN, latent_std=STD, dtype="float32"
)


@imports.inference_mode
def test_rollout_equals_the_reference():
    len_t, num_chunks = 2, 7
    encoder = ImageControlEncoderConfig(encoder=VAE, len_t=len_t).setup()
    generator = np.random.default_rng(0)
    state = {}
    table = wan_vae.OFFICIAL_21_ENCODER
    for key, tensor in rules.export(encoder.param_shapes(), table).items():
        noise = generator.normal(size=tensor.shape).astype(np.float32)
        if key.endswith("gamma"):
            state[key] = 1 + 0.1 * noise
        else:
            state[key] = noise / np.float32(np.prod(tensor.shape[1:]) ** 0.5)
    params = rules.convert(state, table, encoder.param_shapes())
    tensors = {key: torch.from_numpy(value) for key, value in state.items()}
    with mock.patch.object(reference_vae, "load_checkpoint", return_value=tensors):
        reference = reference_i2v.WanI2VCtrlEncoderConfig(
            encoder=reference_vae.WanVAEEncoderConfig(
                checkpoint_path="Wan2.1_VAE.pth",
                dtype=torch.float32,
                use_cuda_graph=False,
                base_dim=4,
                z_dim=2,
                latent_mean=MEAN,
                latent_std=STD,
            )
        ).setup()
    image = generator.uniform(-1, 1, (1, 16, 24, 3)).astype(np.float32)
    cache = encoder.initialize_cache(params, Conditions(image=jnp.array(image)), 2, 3)
    encode = jax.jit(encoder.encode)
    reference_cache = reference.initialize_autoregressive_cache()
    for index in range(num_chunks):
        frames = 4 * len_t - (3 if index == 0 else 0)
        pixels = np.zeros((1, frames, 3, 16, 24), np.float32)
        if index == 0:
            pixels[:, 0] = np.moveaxis(image, -1, 1)
        expected = reference(torch.from_numpy(pixels), index, reference_cache)
        cache, control = encode(params, cache, None)
        for name in ("latent", "mask"):
            value = np.moveaxis(getattr(expected, name).numpy(), 2, -1)
            assert_allclose(getattr(control, name), value, rtol=0, atol=1e-4)
