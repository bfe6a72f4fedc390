"""A smallest pipeline with every moving part, for tests of the runtime alone."""

import dataclasses
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from fdjax.contract.conditioner import Conditions
from fdjax.contract.decoder import DecoderConfig, StreamingDecoder
from fdjax.contract.encoder import NullEncoderConfig
from fdjax.contract.scheduler import LatentState, Scheduler, SchedulerConfig
from fdjax.contract.transformer import Transformer, TransformerConfig
from fdjax.engine.diffusion import DiffusionModelConfig
from fdjax.engine.pipeline import StreamInferencePipelineConfig


@flax.struct.dataclass
class Memory:
    text: jax.Array
    mean: jax.Array
    scratch: jax.Array
    height: int = flax.struct.field(pytree_node=False)
    width: int = flax.struct.field(pytree_node=False)


class MeanTransformer(Transformer):
    """Sees the running mean of the committed chunks, the text and the control."""

    def init_params(self, key):
        channels = self.config.channels
        return {"w": jax.random.normal(key, (channels, channels)) / channels}

    def initialize_cache(self, params, conditions, height, width):
        batch, channels = conditions.batch_size, self.config.channels
        zeros = jnp.zeros((batch, height * width, channels))
        text = conditions.text.mean(axis=1, keepdims=True)
        return Memory(text, zeros, zeros, height=height, width=width)

    def update_conditions(self, params, cache, conditions):
        return cache.replace(text=conditions.text.mean(axis=1, keepdims=True))

    def latent_shape(self, cache):
        return cache.mean.shape

    def start(self, params, cache, control):
        return cache, control

    def predict_flow(self, params, workspace, latent, timestep):
        cache, control = workspace
        hidden = latent + cache.mean + cache.text + timestep / 1000
        if control is not None:
            hidden = hidden + control[:, None, None]
        flow = jnp.tanh(hidden @ params["w"])
        return (cache.replace(scratch=hidden), control), flow

    def release(self, workspace):
        return workspace

    def commit(self, params, cache, residue, clean, timestep):
        _, flow = self.predict_flow(params, (cache, residue), clean, timestep)
        return cache.replace(mean=0.5 * cache.mean + 0.5 * flow)

    def patchify(self, latent):
        return latent.reshape(len(latent), -1, latent.shape[-1])

    def unpatchify(self, latent, cache):
        return latent.reshape(len(latent), 1, cache.height, cache.width, -1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeanTransformerConfig(TransformerConfig):
    _target: type = MeanTransformer

    channels: int = 4


class TwoSteps(NamedTuple):
    timestep: np.ndarray
    needs_draw: np.ndarray
    sigma: np.ndarray
    next_sigma: np.ndarray


class TwoStepScheduler(Scheduler):
    sigmas = np.array([1.0, 0.5, 0.0], np.float32)
    steps = TwoSteps(
        timestep=1000 * sigmas[:-1],
        needs_draw=np.array([True, False]),
        sigma=sigmas[:-1],
        next_sigma=sigmas[1:],
    )

    def init(self, noise):
        return LatentState(noise)

    def update(self, state, record, flow, draw):
        clean = state.latent - record.sigma * flow
        kept = (1 - record.next_sigma) * clean
        return LatentState(kept + record.next_sigma * draw)

    def add_noise(self, clean, timestep, noise):
        return clean + timestep / 1000 * (noise - clean)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoStepSchedulerConfig(SchedulerConfig):
    _target: type = TwoStepScheduler

    num_inference_steps: int = 2
    shift: float = 1.0


class DoublingDecoder(StreamingDecoder):
    """Each latent gives two frames; the first of a stream gives one."""

    spatial_compression_ratio = 2
    temporal_compression_ratio = 2

    def init_params(self, key):
        return {"w": jax.random.normal(key, (self.config.channels, 3))}

    def initialize_cache(self, params, batch_size, height, width):
        return ()

    def decode(self, params, cache, latent):
        video = jnp.tanh(latent @ params["w"])
        video = jnp.repeat(jnp.repeat(video, 2, axis=2), 2, axis=3)
        if cache == ():
            return (video,), video
        return (video,), jnp.concatenate([cache[0] + video, video], axis=1) / 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoublingDecoderConfig(DecoderConfig):
    _target: type = DoublingDecoder

    channels: int = 4


CONFIG = StreamInferencePipelineConfig(
    name="tiny",
    diffusion_model=DiffusionModelConfig(
        transformer=MeanTransformerConfig(),
        scheduler=TwoStepSchedulerConfig(),
        context_noise=100.0,
    ),
    encoder=NullEncoderConfig(),
    decoder=DoublingDecoderConfig(),
)


def conditions(seed=1, batch_size=2):
    key = jax.random.key(seed)
    return Conditions(text=jax.random.normal(key, (batch_size, 3, 4)))


def initialize(pipeline, params, key):
    return pipeline.initialize_cache(
        params, conditions=conditions(), pixel_height=6, pixel_width=8, key=key
    )
