"""Whole rollouts of the Wan DiT against the `flashdreams` package, noise injected.

Each side loads the same published tensors and runs its own transformer wrapper, solver
and cache: generate, then finalize, chunk after chunk.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from fdjax.contract.conditioner import Conditions
from fdjax.engine.diffusion import DiffusionModelConfig
from fdjax.schedulers.euler import EulerSchedulerConfig
from fdjax.schedulers.flow_match import FlowMatchSchedulerConfig
from fdjax.schedulers.unipc import UniPCSchedulerConfig
from fdjax_models.networks.wan_dit.config import WanDiTConfig
from fdjax_models.networks.wan_dit.control import ImageControl
from fdjax_models.networks.wan_dit.image_conditioning import (
    Concatenate,
    FirstFrameTimestep,
    Stamp,
)
from fdjax_models.networks.wan_dit.transformer import WanTransformerConfig
from tests import golden
from tests.networks.wan_dit import tiny
from tests.parity import imports
from tests.parity.comparison import assert_close

torch = imports.lazy("torch")
flashdreams_cpu = imports.lazy("tests.parity.flashdreams_cpu")
reference_model = imports.lazy("flashdreams.infra.diffusion.model")
fm = imports.lazy("flashdreams.infra.diffusion.scheduler.fm")
fm_euler = imports.lazy("flashdreams.infra.diffusion.scheduler.fm_euler")
fm_unipc = imports.lazy("flashdreams.infra.diffusion.scheduler.fm_unipc")
reference_i2v = imports.lazy("flashdreams.recipes.wan.autoencoder.i2v")
reference_network = imports.lazy("flashdreams.recipes.wan.transformer.impl.network")
reference_wan21 = imports.lazy("flashdreams.recipes.wan.transformer.wan21")

pytestmark = imports.requires("torch", "flashdreams")

SCHEDULERS = {
    "flow_match": (FlowMatchSchedulerConfig, fm, "FlowMatchSchedulerConfig"),
    "euler": (EulerSchedulerConfig, fm_euler, "FlowMatchEulerDiscreteSchedulerConfig"),
    "unipc": (UniPCSchedulerConfig, fm_unipc, "FlowMatchUniPCSchedulerConfig"),
}
TI2V_CONFIG = dataclasses.replace(tiny.CONFIG, in_dim=48, out_dim=48)


@dataclasses.dataclass(frozen=True)
class Case:
    """One rollout.

    Attributes:
        transformer: Fields that both wrappers have.
        network: Sizes.
        scheduler: Name in `SCHEDULERS`, and its fields.
        num_chunks: Chunks of the rollout.
        batch: Sessions; the reference runs them one by one, without a batch axis.
        size: Latent rows and columns.
        context_noise: Timestep at which chunks are committed.
        control: `(chunk, shape) -> mask`, shape is [T, C, H, W]; None: no image.
    """

    transformer: dict[str, Any]
    network: WanDiTConfig = tiny.CONFIG
    scheduler: tuple[str, dict[str, Any]] = ("flow_match", {})
    num_chunks: int = 6
    batch: int = 1
    size: tuple[int, int] = (4, 6)
    context_noise: int = 0
    control: Callable[[int, tuple[int, ...]], np.ndarray] | None = None


def _first_frame(chunk: int, shape: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, np.float32)
    mask[0] = chunk == 0
    return mask


def _scattered(chunk: int, shape: tuple[int, ...]) -> np.ndarray:
    """Any positions of any chunk, alike in all channels."""
    frames, _, height, width = shape
    mask = golden.fill_input(f"mask{chunk}", (frames, 1, height, width)) > 0.4
    return np.broadcast_to(mask, shape).astype(np.float32)


RELATIVE = {"apply_rope_before_kvcache": False}
I2V = {"image_conditioning": (Concatenate(),)}
PER_TOKEN = {"image_conditioning": (Stamp(), FirstFrameTimestep())}
REFERENCE_FIELDS = {
    Stamp: lambda _: {"stamp_image_latent": True},
    Concatenate: lambda _: {"concat_image_mask_to_latent": True},
    FirstFrameTimestep: lambda way: {
        "ti2v_first_frame_per_token_timestep": True,
        "first_frame_timestep_value": way.value,
    },
}
CASES = {
    "window": Case({"len_t": 2, "window_size_t": 6}),
    "framewise": Case({"len_t": 1, "window_size_t": 4}, num_chunks=7),
    "other size and grid": Case(
        {"len_t": 3, "window_size_t": 6, "h_extrapolation_ratio": 3.0,
         "w_extrapolation_ratio": 2.0},
        network=dataclasses.replace(
            tiny.CONFIG, dim=60, num_heads=3, num_layers=3, text_len=5
        ),
        size=(6, 4),
    ),
    "sink": Case({"len_t": 2, "window_size_t": 4, "sink_size_t": 2}),
    "straddling sink": Case(
        {"len_t": 3, "window_size_t": 7, "sink_size_t": 5}, num_chunks=7
    ),
    "window shorter than a chunk": Case(
        {"len_t": 3, "window_size_t": 2, "sink_size_t": 4}
    ),
    # Without a sink, absolute and relative time give the same differences.
    "relative": Case({"len_t": 2, "window_size_t": 4, "sink_size_t": 2, **RELATIVE}),
    "relative, straddling sink": Case(
        {"len_t": 3, "window_size_t": 7, "sink_size_t": 5, **RELATIVE}, num_chunks=7
    ),
    "relative, window shorter than a chunk": Case(
        {"len_t": 3, "window_size_t": 2, "sink_size_t": 4, **RELATIVE}
    ),
    "guidance": Case(
        {"len_t": 2, "window_size_t": 4, "sink_size_t": 2, "guidance_scale": 3.5}
    ),
    "guidance, relative, two sessions": Case(
        {"len_t": 2, "window_size_t": 3, "sink_size_t": 1, "guidance_scale": 2.0,
         **RELATIVE},
        batch=2,
    ),
    "bidirectional": Case(
        {"len_t": 3, "window_size_t": 3, "guidance_scale": 6.0},
        scheduler=("unipc", {"num_inference_steps": 6, "shift": 8.0}),
        num_chunks=2,
    ),
    "context noise": Case({"len_t": 2, "window_size_t": 4}, context_noise=128),
    "euler": Case({"len_t": 2, "window_size_t": 4}, scheduler=("euler", {})),
    "lingbot timesteps": Case(
        {"len_t": 2, "window_size_t": 4},
        scheduler=("flow_match", {
            "denoising_timesteps": (1000, 821, 642, 321), "shift": 10.0,
            "sigma_max": 0.999, "timestep_dtype": "int64",
        }),
    ),
    "concatenated image": Case(
        {"len_t": 2, "window_size_t": 4, **I2V},
        network=dataclasses.replace(tiny.CONFIG, in_dim=36),
        control=_first_frame,
    ),
    "concatenated image, image attention, guidance": Case(
        {"len_t": 2, "window_size_t": 4, "sink_size_t": 2, "guidance_scale": 5.0,
         **I2V},
        network=tiny.IMAGE_CONFIG,
        control=_scattered,
    ),
    "stamped image": Case(
        {"len_t": 1, "window_size_t": 4, "image_conditioning": (Stamp(),)},
        control=_first_frame,
    ),
    "stamped and concatenated": Case(
        {"len_t": 2, "window_size_t": 4,
         "image_conditioning": (Stamp(), Concatenate())},
        network=dataclasses.replace(tiny.CONFIG, in_dim=36),
        control=_scattered,
    ),
    "per-token timestep": Case(
        {"len_t": 2, "window_size_t": 4, "guidance_scale": 5.0, **PER_TOKEN},
        network=TI2V_CONFIG,
        scheduler=("unipc", {"num_inference_steps": 4, "shift": 5.0}),
        control=_first_frame,
    ),
    "per-token timestep of 14, masks in every chunk": Case(
        {"len_t": 2, "window_size_t": 4,
         "image_conditioning": (Stamp(), FirstFrameTimestep(value=14.0))},
        network=TI2V_CONFIG,
        control=_scattered,
    ),
}  # fmt: skip


class Reference:
    """The package's diffusion model on the checkpoint in `path`."""

    def __init__(self, case: Case, path: str):
        fields = dict(case.transformer)
        relative = not fields.pop("apply_rope_before_kvcache", True)
        for way in fields.pop("image_conditioning", ()):
            fields |= REFERENCE_FIELDS[type(way)](way)
        sizes = ("dim", "ffn_dim", "num_heads", "num_layers", "in_dim", "out_dim")
        sizes += ("text_dim", "text_len", "freq_dim")
        network = reference_network.WanDiTNetworkConfig(
            **{name: getattr(case.network, name) for name in sizes},
            cross_attn_enable_img=bool(case.network.image_dim),
            apply_rope_before_kvcache=not relative,
        )
        name, options = case.scheduler
        _, module, scheduler = SCHEDULERS[name]
        options = dict(options)
        if "timestep_dtype" in options:
            options["timestep_dtype"] = getattr(torch, options["timestep_dtype"])
        if "denoising_timesteps" in options:
            options["denoising_timesteps"] = list(options["denoising_timesteps"])
        self.model = reference_model.DiffusionModelConfig(
            transformer=reference_wan21.Wan21TransformerConfig(
                network=network,
                checkpoint_path=path,
                batch_shape=(),
                **flashdreams_cpu.EAGER,
                **fields,
            ),
            scheduler=getattr(module, scheduler)(**options),
            context_noise=case.context_noise,
        ).setup()

    def start(self, case: Case, text, negative, image) -> Any:
        """The cache of a new rollout; the text has a batch axis of one."""
        return self.model.transformer.initialize_autoregressive_cache(
            height=case.size[0],
            width=case.size[1],
            text_embeddings=torch.from_numpy(text[None]),
            image_embeddings=None if image is None else torch.from_numpy(image),
            negative_text_embeddings=torch.from_numpy(negative[None])
            if case.transformer.get("guidance_scale", 1.0) > 1
            else None,
        )

    def chunk(self, index: int, cache, control, noise) -> np.ndarray:
        """Generates and finalizes one chunk; [T, C, H, W]."""
        if control is not None:
            latent, mask = control
            control = reference_i2v.I2VCtrl(
                latent=torch.from_numpy(latent), mask=torch.from_numpy(mask)
            )
        with torch.no_grad(), flashdreams_cpu.draws(noise):
            result, state = self.model.generate(index, cache, control)
            self.model.finalize(state)
        return result.numpy()


def _ours(case: Case):
    name, options = case.scheduler
    return DiffusionModelConfig(
        transformer=WanTransformerConfig(network=case.network, **case.transformer),
        scheduler=SCHEDULERS[name][0](**options),
        context_noise=case.context_noise,
    ).setup()


def _inputs(case: Case, prefix: str) -> list[np.ndarray | None]:
    """Text, negative text and image embedding, [B, P, C]."""
    network = case.network
    text = (case.batch, network.text_len, network.text_dim)
    image = golden.fill_input(prefix + "img", (case.batch, 257, 1280))
    return [
        golden.fill_input(prefix + "text", text),
        golden.fill_input(prefix + "negative", text),
        image if network.image_dim else None,
    ]


def _session(inputs: list[np.ndarray | None], index: int) -> list[np.ndarray | None]:
    return [None if x is None else x[index] for x in inputs]


@pytest.mark.parametrize("name", CASES)
def test_rollout(name, tmp_path):
    case = CASES[name]
    tensors = tiny.checkpoint(case.network, prefix=name)
    save_file(tensors, tmp_path / "wan.safetensors")
    reference = Reference(case, str(tmp_path / "wan.safetensors"))
    model, params = _ours(case), tiny.params(case.network, tensors)
    transformer = model.transformer

    inputs = _inputs(case, name)
    caches = [
        reference.start(case, *_session(inputs, index)) for index in range(case.batch)
    ]
    text, negative, image = (None if x is None else jnp.asarray(x) for x in inputs)
    conditions = Conditions(text=text, negative_text=negative, image_embedding=image)
    cache = transformer.initialize_cache(params, conditions, *case.size)
    generate, finalize = jax.jit(model.generate), jax.jit(model.finalize)

    shape = transformer.latent_shape(cache)
    num_draws = model.scheduler.num_draws
    size = (case.transformer["len_t"], case.network.out_dim, *case.size)
    for chunk in range(case.num_chunks):
        prefix = f"{name}{chunk}"
        noise = golden.fill_input(prefix, (num_draws, *shape))
        context = golden.fill_input(prefix + "context", shape)
        latent = mask = control = None
        if case.control is not None:
            latent = golden.fill_input(prefix + "control", size)
            mask = case.control(chunk, size)
            control = ImageControl(latent=tiny.video(latent), mask=tiny.video(mask))
        expected = [
            reference.chunk(
                chunk,
                caches[index],
                None if latent is None else (latent, mask),
                [*noise[:, index], *([context[index]] if case.context_noise else [])],
            )
            for index in range(case.batch)
        ]
        cache, state = generate(params, cache, control, noise)
        result = transformer.unpatchify(state.clean, cache)
        cache = finalize(params, cache, state, context)
        expected = np.stack(expected)
        assert_close(np.moveaxis(result, -1, 2), expected)
