"""The contract suite catches broken methods, each by the check that is meant for it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax import testing
from fdjax.attention.kv_cache import KVLayout
from fdjax.config import derive_config
from fdjax.contract.encoder import EncoderConfig, StreamingEncoder
from fdjax_models.methods.template.config import AUTOREGRESSIVE
from tests import tiny
from tests.methods.template import template_test

CHECKS = {check.__name__: check for check in testing.CHECKS}


class SummingEncoder(StreamingEncoder):
    """The control is the sum of all inputs so far."""

    def init_params(self, key):
        return {}

    def initialize_cache(self, params, conditions, height, width):
        return jnp.zeros((conditions.batch_size,))

    def encode(self, params, cache, input):
        return cache + input, cache + input


@dataclasses.dataclass(frozen=True, kw_only=True)
class SummingEncoderConfig(EncoderConfig):
    _target: type = SummingEncoder


HEALTHY = derive_config(tiny.CONFIG, encoder=SummingEncoderConfig())
STREAMED = template_test.in_float32(
    AUTOREGRESSIVE, model_dim=32, num_heads=2, sink_size_t=2
)


def tiny_case(config):
    return testing.PipelineCase(
        config=config,
        initialize=tiny.initialize,
        make_input=lambda index: jnp.array([0.3, -0.2]) * (index + 1),
        new_conditions=lambda pipeline, params: tiny.conditions(seed=5),
    )


def streamed_case(config):
    return testing.PipelineCase(
        config=config,
        initialize=template_test.initialize,
        make_input=template_test.make_input,
        new_conditions=lambda pipeline, params: template_test.conditions(
            pipeline.config, seed=9
        ),
    )


def mutant(part, base, **methods):
    """The healthy config with methods of one part replaced.

    Args:
        part: "transformer", "scheduler", "encoder" or "decoder".
        base: Pipeline config.
        **methods: `(self, original method, *args) -> result`, by name.
    """
    inside = part in ("transformer", "scheduler")
    config = getattr(base.diffusion_model if inside else base, part)
    target = type(config)._target

    def replace(name, function):
        original = getattr(target, name)
        if isinstance(original, functools.cached_property):
            return functools.cached_property(lambda self: function(self, original.func))

        @functools.wraps(original)
        def method(self, *args, **kwargs):
            bound = functools.partial(original, self)
            return function(self, bound, *args, **kwargs)

        return method

    broken = type(
        f"Broken{target.__name__}",
        (target,),
        {name: replace(name, function) for name, function in methods.items()},
    )
    # A config class of its own, so that nothing compiled for the healthy one is used.
    fields = [("_target", type, dataclasses.field(default=broken))]
    kind = dataclasses.make_dataclass(
        f"Broken{type(config).__name__}",
        fields,
        bases=(type(config),),
        frozen=True,
        kw_only=True,
    )
    values = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name != "_target"
    }
    changes = {part: kind(**values)}
    if inside:
        model = dataclasses.replace(base.diffusion_model, **changes)
        return dataclasses.replace(base, diffusion_model=model)
    return dataclasses.replace(base, **changes)


def forgetful(self, original, params, cache, input):
    return cache, original(params, cache, input)[1]


def without_past(self, original, params, cache, input):
    return original(params, jax.tree.map(jnp.zeros_like, cache), input)


def swapped(self, original, latent, cache):
    shape = len(latent), 1, cache.width, cache.height, latent.shape[-1]
    return latent.reshape(shape).swapaxes(2, 3)


def sideways(self, original, latent, cache):
    return original(latent, cache).swapaxes(2, 3)


def leaking(self, original, workspace):
    cache, control = original(workspace)
    return cache.replace(mean=cache.scratch), control


def mixing(self, original, params, workspace, latent, timestep):
    workspace, flow = original(params, workspace, latent, timestep)
    return workspace, flow + flow.mean(axis=0)


def committing_nothing(self, original, params, cache, *rest):
    return cache


def committing_noise(self, original, params, cache, residue, clean, timestep):
    return original(params, cache, residue, 0 * clean, timestep)


def illiterate(self, original, params, cache, control):
    return original(params, cache.replace(text=0 * cache.text), control)


def hold(self, original, params, cache, *rest):
    return original(params, cache.replace(mean=0 * cache.mean), *rest)


def frozen_decoder(self, original, params, cache, latent):
    state, video = original(params, cache, latent)
    return (state if cache == () else cache), video


def blind_decoder(self, original, params, cache, latent):
    state, video = original(params, cache, latent)
    if cache != ():
        _, video = original(params, (jnp.zeros_like(cache[0]),), latent)
    return state, video


def stale(self, original, params, cache, residue, clean, timestep):
    new = original(params, cache, residue, clean, timestep)
    kv = dataclasses.replace(new.kv, num_chunks=cache.kv.num_chunks)
    return dataclasses.replace(new, kv=kv)


def emptied(self, original, params, cache, conditions):
    new = original(params, cache, conditions)
    kv = jax.tree.map(jnp.zeros_like, new.kv)
    return dataclasses.replace(new, kv=kv)


def plain_ring(self, original, cache):
    return tuple(
        KVLayout(sink=0, window=each.capacity, chunk=each.chunk)
        for each in original(cache)
    )


class ShortRing(KVLayout):
    """Attention sees one token less than it should."""

    def valid_length(self, num_tokens):
        return super().valid_length(num_tokens) - 1


def short_ring(self, original, cache):
    return tuple(
        ShortRing(each.sink, each.window, each.chunk, each.slot_multiple)
        for each in original(cache)
    )


def deaf(self, original, params, cache, control):
    return original(params, cache, None if control is None else 0 * control)


TINY_MUTANTS = {
    "commit that commits nothing": (
        mutant(
            "transformer", HEALTHY, commit=lambda self, _, params, cache, *rest: cache
        ),
        "check_commit",
        "commits nothing",
    ),
    "next chunk that reads nothing of the cache": (
        mutant("transformer", HEALTHY, start=hold),
        "check_commit",
        "whatever was committed",
    ),
    "predict_flow without its control": (
        mutant("transformer", HEALTHY, start=deaf),
        "check_control",
        "predict_flow gives the same flow",
    ),
    "encoder without its input": (
        mutant(
            "encoder",
            HEALTHY,
            encode=lambda self, original, params, cache, input: (cache, 0 * input),
        ),
        "check_control",
        "same control whatever its input",
    ),
    "update_conditions that wipes history": (
        mutant(
            "transformer",
            HEALTHY,
            update_conditions=lambda self, original, params, cache, conditions: (
                original(params, cache.replace(mean=0 * cache.mean), conditions)
            ),
        ),
        "check_history",
        "wipes the history",
    ),
    "update_conditions that does nothing": (
        mutant(
            "transformer",
            HEALTHY,
            update_conditions=lambda self, _, params, cache, conditions: cache,
        ),
        "check_new_conditions",
        "new conditions do not change the next chunk",
    ),
    "predict_flow without the text": (
        mutant("transformer", HEALTHY, start=illiterate),
        "check_new_conditions",
        "new conditions do not change the next chunk",
    ),
    "commit without the clean latent": (
        mutant("transformer", HEALTHY, commit=committing_noise),
        "check_commit",
        "commits nothing",
    ),
    "encoder that never writes its state": (
        mutant("encoder", HEALTHY, encode=forgetful),
        "check_encoder_state",
        "never writes",
    ),
    "encoder that never reads its state": (
        mutant("encoder", HEALTHY, encode=without_past),
        "check_encoder_state",
        "forgets; read the state",
    ),
    "decoder that never writes its state": (
        mutant("decoder", HEALTHY, decode=frozen_decoder),
        "check_decoder_state",
        "never writes",
    ),
    "decoder that never reads its state": (
        mutant("decoder", HEALTHY, decode=blind_decoder),
        "check_decoder_state",
        "forgets; read the state",
    ),
    "decoder far outside [-1, 1]": (
        mutant(
            "decoder",
            HEALTHY,
            decode=lambda self, original, *args: (
                original(*args)[0],
                127.5 * (original(*args)[1] + 1),
            ),
        ),
        "check_output",
        r"must lie in \[-1, 1\]",
    ),
    "unpatchify by columns": (
        mutant("transformer", HEALTHY, unpatchify=swapped),
        "check_patches",
        "does not undo",
    ),
    "unpatchify that swaps rows and columns": (
        mutant("transformer", HEALTHY, unpatchify=sideways),
        "check_patches",
        "rows and columns, the cache is for",
    ),
    "patchify by columns": (
        mutant(
            "transformer",
            HEALTHY,
            patchify=lambda self, original, latent: original(latent.swapaxes(2, 3)),
        ),
        "check_patches",
        "does not undo",
    ),
    "release that leaks the scratch": (
        mutant("transformer", HEALTHY, release=leaking),
        "check_donate",
        "working in place gives another video",
    ),
    "sessions that mix": (
        mutant("transformer", HEALTHY, predict_flow=mixing),
        "check_sessions",
        "sessions of one batch mix",
    ),
    "scheduler that ignores its draws": (
        mutant(
            "scheduler",
            HEALTHY,
            update=lambda self, original, state, record, flow, draw: original(
                state, record, flow, 0 * draw
            ),
        ),
        "check_scheduler",
        "ignores its draw",
    ),
    "scheduler with the wrong sign": (
        mutant(
            "scheduler",
            HEALTHY,
            update=lambda self, original, state, record, flow, draw: original(
                state, record, -flow, draw
            ),
        ),
        "check_scheduler",
        "to the clean latent",
    ),
}

STREAMED_MUTANTS = {
    "clock that stands still": (
        mutant("transformer", STREAMED, commit=stale),
        "check_structure",
        "commit counted",
    ),
    "update_conditions that empties the cache": (
        mutant("transformer", STREAMED, update_conditions=emptied),
        "check_history",
        "wipes the history",
    ),
    "ring without a sink": (
        mutant("transformer", STREAMED, _layers=plain_ring),
        "check_window",
        "latent frame",
    ),
    "window that is one token short": (
        mutant("transformer", STREAMED, _layers=short_ring),
        "check_window",
        "latent frame",
    ),
    "scratch that forgets the values": (
        mutant(
            "transformer",
            STREAMED,
            scratch=lambda self, original, cache: jax.tree.map(
                lambda leaf: leaf * (leaf.ndim < 4), original(cache)
            ),
        ),
        "check_undo",
        "restore does not give the cache",
    ),
    "control that is not prepared": (
        mutant("transformer", STREAMED, prepare=lambda self, original, *args: None),
        "check_control",
        "predict_flow gives the same flow",
    ),
}


@pytest.mark.parametrize("name", TINY_MUTANTS)
def test_a_small_method_that_is_broken(name):
    config, check, message = TINY_MUTANTS[name]
    with pytest.raises(AssertionError, match=message):
        CHECKS[check](tiny_case(config))


@pytest.mark.parametrize("name", STREAMED_MUTANTS)
def test_a_streamed_network_that_is_broken(name):
    config, check, message = STREAMED_MUTANTS[name]
    with pytest.raises(AssertionError, match=message):
        CHECKS[check](streamed_case(config))


@pytest.mark.parametrize("check", sorted({each[1] for each in TINY_MUTANTS.values()}))
def test_the_small_method_is_healthy(check):
    CHECKS[check](tiny_case(HEALTHY))
    unchanged = mutant(
        "transformer", HEALTHY, commit=lambda self, original, *args: original(*args)
    )
    CHECKS[check](tiny_case(unchanged))


@pytest.mark.parametrize(
    "check", sorted({each[1] for each in STREAMED_MUTANTS.values()})
)
def test_the_streamed_network_is_healthy(check):
    CHECKS[check](streamed_case(STREAMED))


def test_square_latents_are_not_enough_and_others_are_tried():
    """Swapped rows and columns of a square latent show on another size only."""

    def square(pipeline, params, key):
        return pipeline.initialize_cache(
            params,
            conditions=tiny.conditions(),
            pixel_height=8,
            pixel_width=8,
            key=key,
        )

    def transposed(self, original, latent, cache):
        shape = len(latent), 1, cache.width, cache.height, latent.shape[-1]
        return latent.reshape(shape)

    broken = mutant("transformer", HEALTHY, unpatchify=transposed)
    case = dataclasses.replace(tiny_case(broken), initialize=square)
    with pytest.raises(AssertionError, match=r"\(8, 4\) rows and columns"):
        CHECKS["check_patches"](case)
    healthy = dataclasses.replace(tiny_case(HEALTHY), initialize=square)
    CHECKS["check_patches"](healthy)


def test_history_is_tried_without_new_conditions_too():
    broken = mutant("transformer", HEALTHY, update_conditions=hold)
    case = dataclasses.replace(tiny_case(broken), new_conditions=None)
    with pytest.raises(AssertionError, match="wipes the history"):
        CHECKS["check_history"](case)


def test_inputs_that_are_all_alike_are_varied():
    same = {"make_input": lambda index: jnp.full((2,), 0.3)}
    case = dataclasses.replace(tiny_case(HEALTHY), **same)
    CHECKS["check_control"](case)
    broken = mutant("transformer", HEALTHY, start=deaf)
    case = dataclasses.replace(tiny_case(broken), **same)
    with pytest.raises(AssertionError, match="predict_flow gives the same flow"):
        CHECKS["check_control"](case)


def test_a_method_without_memory_says_so():
    config = mutant("transformer", HEALTHY, commit=committing_nothing)
    case = dataclasses.replace(tiny_case(config), remembers=False)
    CHECKS["check_commit"](case)
    assert not case.has_memory
    alone = template_test.in_float32(AUTOREGRESSIVE, window_size_t=2)
    assert not streamed_case(alone).has_memory
    assert streamed_case(STREAMED).has_memory


def test_a_decoder_without_bounds_says_so():
    case = streamed_case(STREAMED)
    assert case.pipeline.decoder.video_range is None
    assert np.abs(case.run(case.cache(), range(1))[1][0]).max() > 2
