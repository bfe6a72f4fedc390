"""HD-map encoders against the reference's: its VAE class, and its frame folding."""

from unittest import mock

import jax
import numpy as np
import pytest

from fdjax.contract.conditioner import Conditions
from fdjax_convert import rules
from fdjax_convert.tables import wan_vae
from fdjax_models.networks.hdmap.pixel_shuffle import PixelShuffleEncoderConfig
from fdjax_models.networks.hdmap.vae_encoder import HdMapVaeEncoderConfig
from fdjax_models.networks.wan_vae.first_frame import FirstFrameEncoderConfig
from fdjax_models.networks.wan_vae.vae import WanVaeEncoderConfig
from tests.parity import imports
from tests.parity.comparison import assert_close

torch = imports.lazy("torch")
einops = imports.lazy("einops")
reference_vae = imports.lazy("flashdreams.recipes.wan.autoencoder.vae")

pytestmark = imports.requires("torch", "flashdreams")

BASE = 32  # of which the pruned VAE has a quarter
VAE = WanVaeEncoderConfig(widths=(8, 16, 32, 32), dtype="float32")


@pytest.fixture(scope="module")
def reference():
    """The reference's pruned encoder, and its weights as ours."""
    generator = torch.Generator().manual_seed(0)

    def build(state):
        with mock.patch.object(reference_vae, "load_checkpoint", return_value=state):
            return reference_vae.WanVAEEncoderConfig(
                checkpoint_path="lightvaew2_1.pth",
                base_dim=BASE,
                use_compile=False,
                use_cuda_graph=False,
                dtype=torch.float32,
            ).setup()

    state = {
        key.removeprefix("vae."): torch.randn(value.shape, generator=generator)
        / max(value[0].numel(), 4) ** 0.5
        + key.endswith("gamma")
        for key, value in build({}).state_dict().items()
        if "_call." not in key
    }
    module = build(state)
    arrays = {key: value.numpy() for key, value in state.items()}
    component = VAE.setup()
    layout = next(
        layout
        for layout in wan_vae.LAYOUTS
        if layout.architecture == component.architecture
        and layout.name == "official 2.1"
    )
    params = rules.convert(arrays, layout.rules, component.param_shapes())
    return module, params


def to_torch(video):
    """[..., H, W, C] -> [..., C, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(video, -1, -3)))


def from_torch(video):
    return np.moveaxis(video.numpy(), -3, -1)


def random_video(*shape):
    return np.random.default_rng(3).uniform(-1, 1, (*shape, 3)).astype(np.float32)


@imports.inference_mode
def test_hd_map_video_of_several_views(reference):
    chunks = (5, 8, 8)
    module, params = reference
    encoder = HdMapVaeEncoderConfig(encoder=VAE).setup()
    given = random_video(1, 2, sum(chunks), 16, 24)
    theirs = module.initialize_autoregressive_cache()
    ours = encoder.initialize_cache(params, Conditions(), 2, 3)
    encode, cuts = jax.jit(encoder.encode), np.cumsum(chunks)[:-1]
    for index, chunk in enumerate(np.split(given, cuts, axis=2)):
        expected = from_torch(module(to_torch(chunk), index, theirs))
        ours, found = encode(params, ours, chunk)
        assert_close(found, expected)


@imports.inference_mode
def test_first_frames(reference):
    module, params = reference
    encoder = FirstFrameEncoderConfig(encoder=VAE).setup()
    given = random_video(1, 2, 16, 24)
    # [B, V, H, W, 3] -> [B, V, 1, 3, H, W]
    expected = from_torch(module(to_torch(given[:, :, None])))
    assert_close(encoder.encode(params, given), expected)


# Of NVIDIA/flashdreams, integrations_v2/omnidreams: indices of later chunks, of the
# first one behind frame 0, and how pixels become channels.
SELECTION = {"last_frame": (3, 4), "first_frame": (0, 1)}


@pytest.mark.parametrize("mode", SELECTION)
def test_folded_frames(mode):
    encoder = PixelShuffleEncoderConfig(frame_selection_mode=mode).setup()
    cache = encoder.initialize_cache({}, Conditions(), 2, 3)
    later, first = SELECTION[mode]
    given = random_video(1, 2, 13 + 16, 16, 24)
    for index, chunk in enumerate((given[:, :, :13], given[:, :, 13:])):
        frames = chunk.shape[2]
        kept = list(range(later, frames, 4)) if index else [0, *range(first, frames, 4)]
        expected = einops.rearrange(
            chunk[:, :, kept], "b v t (h r) (w s) c -> b v t h w (c r s)", r=8, s=8
        )
        cache, found = encoder.encode({}, cache, chunk)
        np.testing.assert_array_equal(found, expected)
