"""Rollouts on simulated devices; run as a program, prints what it found as JSON.

The number of a CPU's devices is set before jax starts, so that these do not run in the
process of the tests.
"""

import collections
import dataclasses
import functools
import json
import sys
import traceback

import jax
import jax.numpy as jnp
import numpy as np

import fdjax
from fdjax import sharding, testing
from fdjax.checkpoint import placement
from fdjax.contract.conditioner import Conditions
from fdjax.contract.encoder import NullEncoderConfig
from fdjax.engine import homes, stages
from fdjax.engine.diffusion import DiffusionModelConfig
from fdjax.engine.pipeline import StreamInferencePipelineConfig
from fdjax.schedulers import FlowMatchSchedulerConfig
from fdjax_models.networks.cosmos_dit.control import CosmosControl
from fdjax_models.networks.cosmos_dit.transformer import CosmosTransformerConfig
from fdjax_models.networks.wan_dit import image_conditioning
from fdjax_models.networks.wan_dit.control import ImageControl, WanControl
from fdjax_models.networks.wan_dit.transformer import WanTransformerConfig
from tests.networks.cosmos_dit import tiny as cosmos
from tests.networks.wan_dit import tiny as wan
from tests.tiny import DoublingDecoderConfig

HEADS = 4  # so many that two axes can cut them


def pipeline_of(transformer, decoder=None):
    steps = FlowMatchSchedulerConfig(
        num_inference_steps=2, denoising_timesteps=(1000, 500)
    )
    return StreamInferencePipelineConfig(
        name="mesh",
        diffusion_model=DiffusionModelConfig(
            transformer=transformer, scheduler=steps, context_noise=50.0
        ),
        encoder=NullEncoderConfig(),
        decoder=decoder,
        spatial_compression_ratio=2 if decoder else 1,
    ).setup()


def wan_transformer(base=wan.CONFIG, **changes):
    network = dataclasses.replace(base, num_heads=HEADS, num_layers=1)
    sizes = {"len_t": 1, "window_size_t": 2, "sink_size_t": 1} | changes
    return WanTransformerConfig(network=network, **sizes)


def cosmos_transformer():
    sizes = {"num_heads": HEADS, "num_layers": 1, "control_dim": 192}
    return CosmosTransformerConfig(
        network=dataclasses.replace(cosmos.CONFIG, num_cameras=7, **sizes),
        cameras=(0, 3),
        len_t=2,
        window_size_t=4,
    )


class Rollout:
    """Chunks of one pipeline, the same inputs wherever it runs."""

    def __init__(self, pipeline, control=None, *, sessions=1, size=(6, 6), prompt=8):
        self.pipeline, self.size = pipeline, size
        self._control = control
        network = pipeline.diffusion_model.transformer.config
        shape = sessions, prompt, network.network.text_dim
        text = [normal(seed, shape) for seed in (1, 2)]
        guided = network.guidance_scale > 1
        self._conditions = Conditions(
            text=text[0], negative_text=text[1] if guided else None
        )
        self._params = pipeline.init_params(jax.random.key(0))

    def params(self, where=None):
        """The weights on a mesh."""
        if where is None:
            return self._params
        places = {
            name: placement.leaf_shardings(own, where)
            for name, own in self._params.items()
        }
        return jax.device_put(self._params, places)

    def start(self, params):
        ratio = self.pipeline.config.spatial_compression_ratio
        return self.pipeline.initialize_cache(
            params,
            conditions=self._conditions,
            pixel_height=ratio * self.size[0],
            pixel_width=ratio * self.size[1],
            key=jax.random.key(3),
        )

    def chunks(self, params, cache, count, first=0):
        """The cache, and the video of `count` chunks."""
        videos = []
        for index in range(first, first + count):
            control = self._control and self._control(index)
            cache, video = self.pipeline.generate(params, cache, control, donate=True)
            cache = self.pipeline.finalize(params, cache, donate=True)
            videos.append(np.asarray(video))
        return cache, np.concatenate(videos, axis=1)

    @functools.cached_property
    def plain(self):
        """Four chunks on one device: the window is full, and the ring comes around."""
        return self.chunks(self._params, self.start(self._params), 4)[1]

    def error(self, **sizes):
        """How far four chunks on a mesh are from those on one device."""
        params = self.params(sharding.make_mesh(sizes))
        cache = self.start(params)
        first, early = self.chunks(params, cache, 2)
        keys = first.transformer_cache.kv.keys[0].sharding
        with testing.count_compilations() as compilations:
            last, late = self.chunks(params, first, 2, first=2)
            self.start(params)
        assert compilations() == 0, f"{compilations()} programs after the second chunk"
        assert keys == last.transformer_cache.kv.keys[0].sharding
        assert not keys.is_fully_replicated, keys
        return error(np.concatenate([early, late], axis=1), self.plain)


def normal(seed, shape):
    return jax.random.normal(jax.random.key(seed), shape)


def error(found, expected):
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def first_frame(index, frames, size, channels):
    mask = np.zeros((1, frames, *size, channels), np.float32)
    mask[:, 0] = index == 0
    return ImageControl(latent=normal(4, mask.shape), mask=jnp.asarray(mask))


def camera(index):
    return WanControl(
        image=first_frame(index, 1, (6, 6), 16), rays=normal(index, (1, 1, 6, 6, 384))
    )


def hdmap(index, width=6):
    image = first_frame(index, 2, (6, width), 16)
    return CosmosControl(image=image, hdmap=normal(index, (1, 2, 6, width, 192)))


# The rollouts. 6 x 6 latents are 9 tokens a frame, which no mesh divides.


@functools.cache
def guidance():
    return Rollout(pipeline_of(wan_transformer(guidance_scale=3.0)))


@functools.cache
def cache_relative():
    return Rollout(pipeline_of(wan_transformer(apply_rope_before_kvcache=False)))


@functools.cache
def even():
    """Of 12 tokens, so that nothing is padded."""
    return Rollout(pipeline_of(wan_transformer()), size=(6, 8))


@functools.cache
def lingbot():
    ways = (image_conditioning.Concatenate(),)
    transformer = wan_transformer(wan.LINGBOT_CONFIG, image_conditioning=ways)
    return Rollout(pipeline_of(transformer), camera)


@functools.cache
def omnidreams():
    control = functools.partial(hdmap, width=12)
    transformer = cosmos_transformer()
    return Rollout(pipeline_of(transformer), control, size=(6, 12), prompt=5)


@functools.cache
def sessions():
    return Rollout(pipeline_of(wan_transformer()), sessions=2)


ROLLOUTS = {
    "guidance": (guidance, {"guidance": 2, "sequence": 2}),
    "cache_relative": (cache_relative, {"sequence": 4}),
    "lingbot": (lingbot, {"sequence": 2, "tensor": 2}),
    "omnidreams": (omnidreams, {"heads": 2, "sequence": 2}),
    "sessions": (sessions, {"data": 2, "tensor": 2}),
}


# What else is asked


def noise():
    """Bits of the noise of a chunk that differ from those on one device."""
    rollout = sessions()
    found = []
    for sizes in (None, {"data": 2, "sequence": 4}, {"sequence": 2, "tensor": 2}):
        params = rollout.params(sizes and sharding.make_mesh(sizes))
        cache = rollout.start(params)
        found.append(np.asarray(fdjax.chunk_noise(rollout.pipeline, cache)))
    return [int((each != found[0]).sum()) for each in found]


def moved(folder):
    """A session begun on one mesh goes on on another, and on one device."""
    rollout, path = cache_relative(), f"{folder}/moved.session"
    params = rollout.params(sharding.make_mesh({"sequence": 4}))
    cache, video = rollout.chunks(params, rollout.start(params), 2)
    fdjax.save_cache(path, cache, pipeline=rollout.pipeline)
    errors = [error(video, rollout.plain[:, :2])]
    for sizes in ({"heads": 4}, None):
        params = rollout.params(sizes and sharding.make_mesh(sizes))
        cache = fdjax.load_cache(path, pipeline=rollout.pipeline)
        cache = homes.placed(params, cache)
        _, video = rollout.chunks(params, cache, 2, first=2)
        errors.append(error(video, rollout.plain[:, 2:]))
    return errors


def placed():
    """Network and decoder on devices of their own, in another place than jax's."""
    rollout = Rollout(
        pipeline_of(wan_transformer(), DoublingDecoderConfig(channels=16))
    )
    one, other = map(jax.sharding.SingleDeviceSharding, jax.devices()[2:4])
    params = rollout.params()
    params = {
        "encoder": params["encoder"],
        "transformer": jax.device_put(params["transformer"], one),
        "decoder": jax.device_put(params["decoder"], other),
    }
    cache = rollout.start(params)
    cache, video = rollout.chunks(params, cache, 4)
    assert cache.transformer_cache.kv.keys[0].devices() == one.device_set
    assert cache.decoder_cache[0].devices() == other.device_set
    return error(video, rollout.plain)


def sent():
    """Kinds and bytes of what a chunk's program sends, by mesh."""
    found = {}
    for name, rollout, sizes in (
        ("sequence", even(), {"sequence": 2}),
        ("guidance", guidance(), {"guidance": 2}),
    ):
        params = rollout.params(sharding.make_mesh(sizes))
        cache, model = rollout.start(params), rollout.pipeline.diffusion_model
        with sharding.home(params["transformer"]):
            text = (
                stages.diffuse_in_place.lower(
                    model,
                    params["transformer"],
                    cache.transformer_cache,
                    None,
                    None,
                    cache.autoregressive_index,
                    cache.key,
                )
                .compile()
                .as_text()
            )
        counts = collections.Counter(testing.collectives(text))
        found[name] = [[*each, count] for each, count in sorted(counts.items())]
    return found


def main(folder):
    jobs = {
        name: functools.partial(lambda make, sizes: make().error(**sizes), *case)
        for name, case in ROLLOUTS.items()
    }
    jobs |= {"noise": noise, "moved": functools.partial(moved, folder)}
    jobs |= {"placed": placed, "sent": sent}
    for name, job in jobs.items():
        try:
            print(json.dumps([name, job()]), flush=True)
        except Exception:
            print(json.dumps([name, traceback.format_exc()]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
