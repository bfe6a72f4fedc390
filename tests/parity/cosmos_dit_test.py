"""Rollouts of the Cosmos DiT against the `flashdreams` package, noise injected.

Both sides load the same published tensors, and generate and finalize chunk by chunk.
What OmniDreams adds to the package's network is in `cosmos_reference`.
"""

import dataclasses
import functools
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from fdjax.contract.conditioner import Conditions
from fdjax.engine.diffusion import DiffusionModelConfig
from fdjax.schedulers.flow_match import FlowMatchSchedulerConfig
from fdjax.schedulers.unipc import UniPCSchedulerConfig
from fdjax.streaming.patches import patchify
from fdjax_models.networks.cosmos_dit.config import CosmosDiTConfig
from fdjax_models.networks.cosmos_dit.control import CosmosControl
from fdjax_models.networks.cosmos_dit.layers import _features
from fdjax_models.networks.cosmos_dit.transformer import CosmosTransformerConfig
from fdjax_models.networks.wan_dit.control import ImageControl
from tests.networks.cosmos_dit import tiny
from tests.networks.cosmos_dit.tiny import wave
from tests.parity import imports
from tests.parity.comparison import assert_close

torch = imports.lazy("torch")
flashdreams_cpu = imports.lazy("tests.parity.flashdreams_cpu")
cosmos_reference = imports.lazy("tests.parity.cosmos_reference")
reference_model = imports.lazy("flashdreams.infra.diffusion.model")
fm = imports.lazy("flashdreams.infra.diffusion.scheduler.fm")
fm_unipc = imports.lazy("flashdreams.infra.diffusion.scheduler.fm_unipc")
reference_cosmos = imports.lazy("flashdreams.recipes.cosmos.transformer")
reference_modules = imports.lazy("flashdreams.recipes.cosmos.transformer.impl.modules")
reference_network = imports.lazy("flashdreams.recipes.cosmos.transformer.impl.network")

pytestmark = imports.requires("torch", "flashdreams")

KARRAS = {"num_inference_steps": 4, "use_kerras_sigma": True}


@dataclasses.dataclass(frozen=True)
class Case:
    """One rollout.

    Attributes:
        transformer: Fields that both wrappers have.
        network: Sizes.
        num_chunks: Chunks of the rollout.
        image: Whether there is a first frame.
        size: Latent rows and columns of a view.
        cameras: Rows of the cameras' embedding.
        context_noise: Timestep at which chunks are committed.
        unipc: Whether the solver is UniPC on Karras' noise levels.
    """

    transformer: dict[str, Any]
    network: CosmosDiTConfig = tiny.CONFIG
    num_chunks: int = 6
    image: bool = True
    size: tuple[int, int] = (4, 6)
    cameras: tuple[int, ...] = (0,)
    context_noise: int = 128
    unipc: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """B, V, T, C, H, W of a chunk's latent."""
        return (1, len(self.cameras), self.transformer["len_t"], 16, *self.size)


MAP = dataclasses.replace(tiny.CONFIG, control_dim=16)
VIEWS = dataclasses.replace(tiny.CONFIG, control_dim=192, num_cameras=7)
CASES = {
    "window": Case({"len_t": 2, "window_size_t": 6}),
    "map, sink, other sizes": Case(
        {"len_t": 1, "window_size_t": 3, "sink_size_t": 1},
        network=dataclasses.replace(MAP, dim=72, num_heads=3, text_len=7),
        size=(6, 4),
    ),
    "skip finalize": Case(
        {"len_t": 2, "window_size_t": 4, "skip_finalize_kv_cache": True}
    ),
    "guidance, timestep of the frame": Case(
        {
            "len_t": 2,
            "window_size_t": 4,
            "guidance_scale": 3.0,
            "conditional_frame_timestep": 0.1,
        },
    ),
    "three views, map, guidance, skip finalize": Case(
        {
            "len_t": 2,
            "window_size_t": 4,
            "guidance_scale": 3.0,
            "skip_finalize_kv_cache": True,
        },
        network=VIEWS,
        size=(2, 4),
        cameras=(6, 0, 3),
        context_noise=0,
    ),
    "text to video in one chunk": Case(
        {"len_t": 3, "window_size_t": 3, "guidance_scale": 8.0},
        num_chunks=1,
        image=False,
        context_noise=0,
        unipc=True,
    ),
}


class Reference:
    """The package's diffusion model, and its cache of one session."""

    def __init__(self, case: Case, path: str):
        # First of all: it makes the package's modules importable on a CPU.
        eager = flashdreams_cpu.EAGER
        sizes, views = case.network, case.shape[1]
        network = cosmos_reference.network_class(
            sizes.control_dim,
            case.cameras if sizes.num_cameras else (),
            case.transformer["len_t"],
        )
        with mock.patch(
            "flashdreams.recipes.cosmos.transformer.CosmosDiTNetwork", network
        ):
            self.model = reference_model.DiffusionModelConfig(
                transformer=reference_cosmos.CosmosTransformerConfig(
                    network=self._network(sizes),
                    checkpoint_path=path,
                    state_dict_transform=reference_network.state_dict_transform,
                    batch_shape=(views,),
                    **eager,
                    **case.transformer,
                ),
                scheduler=self._scheduler(case),
                context_noise=case.context_noise,
            ).setup()
        self.cache = None

    @staticmethod
    def _network(sizes: CosmosDiTConfig):
        return reference_network.CosmosDiTNetworkConfig(
            model_channels=sizes.dim,
            num_blocks=sizes.num_layers,
            num_heads=sizes.num_heads,
            mlp_ratio=sizes.ffn_dim / sizes.dim,
            adaln_lora_dim=sizes.lora_dim,
            crossattn_proj_in_channels=sizes.text_dim,
            crossattn_emb_channels=sizes.context_dim,
        )

    @staticmethod
    def _scheduler(case: Case):
        if case.unipc:
            return fm_unipc.FlowMatchUniPCSchedulerConfig(**KARRAS)
        return fm.FlowMatchSchedulerConfig(
            num_inference_steps=2, denoising_timesteps=[1000, 450], shift=5.0
        )

    def start(self, case: Case, text, negative, image) -> None:
        """A new session; arrays are [V, ...]."""
        self.cache = self.model.transformer.initialize_autoregressive_cache(
            height=case.size[0],
            width=case.size[1],
            text_embeddings=torch.from_numpy(text),
            negative_text_embeddings=torch.from_numpy(negative),
            image_embeddings=torch.from_numpy(image) if case.image else None,
        )

    def chunk(self, index: int, hdmap, noise) -> np.ndarray:
        """Generates and finalizes one chunk; [V, T, C, H, W]."""
        with torch.no_grad(), flashdreams_cpu.draws(noise):
            if hdmap is not None:
                self.model.transformer.network.show(torch.from_numpy(hdmap))
            result, state = self.model.generate(index, self.cache, None)
            self.model.finalize(state)
        return result.numpy()


def _ours(case: Case):
    if case.unipc:
        scheduler = UniPCSchedulerConfig(**KARRAS)
    else:
        scheduler = FlowMatchSchedulerConfig(
            num_inference_steps=2, denoising_timesteps=(1000, 450), shift=5.0
        )
    return DiffusionModelConfig(
        transformer=CosmosTransformerConfig(
            network=case.network, cameras=case.cameras, **case.transformer
        ),
        scheduler=scheduler,
        context_noise=case.context_noise,
    ).setup()


def _tokens(latent: np.ndarray) -> np.ndarray:
    """[1, V, T, C, H, W] to [V, L, C], as the package draws noise."""
    return np.asarray(patchify(np.moveaxis(latent[0], 2, -1), (1, 2, 2)))


def _control(case: Case, chunk: int, image, hdmap) -> CosmosControl:
    control = CosmosControl()
    if case.image:
        given = np.zeros(case.shape, np.float32)
        mask = np.zeros_like(given)
        if chunk == 0:
            given[:, :, 0], mask[:, :, 0] = image[:, :, 0], 1
        given, mask = tiny.side_by_side(given), tiny.side_by_side(mask)
        control = CosmosControl(image=ImageControl(latent=given, mask=mask))
    if hdmap is None:
        return control
    return dataclasses.replace(control, hdmap=tiny.side_by_side(hdmap))


@pytest.mark.parametrize("name", CASES)
def test_rollout(name, tmp_path):
    case = CASES[name]
    views, sizes = case.shape[1], case.network
    tensors = tiny.checkpoint(sizes)
    path = tmp_path / "cosmos.safetensors"
    save_file({f"net.{key}": array for key, array in tensors.items()}, path)
    reference, model = Reference(case, str(path)), _ours(case)
    params = tiny.params(sizes, tensors)
    prompt = 1, views, sizes.text_len, sizes.text_dim
    text, negative = wave(prompt, 101), wave(prompt, 103)
    image = wave((1, views, 1, 16, *case.size), 102)
    reference.start(case, text[0], negative[0], image[0])
    conditions = Conditions(text=jnp.asarray(text), negative_text=jnp.asarray(negative))
    height, width = case.size
    cache = model.transformer.initialize_cache(
        params, conditions, height, views * width
    )
    generate, finalize = jax.jit(model.generate), jax.jit(model.finalize)
    num_draws = model.scheduler.num_draws
    for chunk in range(case.num_chunks):
        draws = [wave(case.shape, k + chunk) for k in (300, 400, 500)]
        used = [*draws[:num_draws], *draws[2:][: bool(case.context_noise)]]
        hdmap = None
        if sizes.control_dim:
            channels = (*case.shape[:3], sizes.control_dim, *case.size)
            hdmap = wave(channels, 200 + chunk)
        expected = reference.chunk(
            chunk, None if hdmap is None else hdmap[0], list(map(_tokens, used))
        )
        noise = jnp.stack([tiny.side_by_side(draw) for draw in draws])
        kept, control = cache, _control(case, chunk, image, hdmap)
        _, final = generate(params, cache, control, noise[:num_draws])
        latent = model.transformer.unpatchify(final.clean, cache)
        # From the cache as it was: a pure generate need not hand on its scratch.
        cache = finalize(params, kept, final, noise[2:])
        assert_close(tiny.by_view(latent, views)[0], expected)


def test_a_timestep_in_bfloat16_is_the_reference_s_to_the_last_bit():
    """Compiled, too, where conversions there and back may be left out."""
    assert flashdreams_cpu.EAGER  # makes the package's modules importable
    config = dataclasses.replace(tiny.CONFIG, dim=2048, dtype="bfloat16")
    timesteps = np.append(np.linspace(0, 1000, 997), 0.1).astype(np.float32)
    embedding = reference_modules.Timesteps(config.dim).bfloat16()
    scaled = torch.from_numpy(timesteps).bfloat16() * config.timestep_scale
    expected = embedding(scaled).float().numpy()
    features = jax.jit(functools.partial(_features, config))
    actual = np.asarray(features(timesteps[None])[0], np.float32)
    np.testing.assert_array_equal(actual, expected)
    exact = dataclasses.replace(config, time_dtype="float32")
    assert np.any(np.asarray(_features(exact, timesteps[None])[0]) != expected)
