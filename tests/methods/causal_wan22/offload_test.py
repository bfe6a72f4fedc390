"""Experts whose weights wait with the host: where they are, and the same bits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from fdjax import checkpoint
from fdjax.checkpoint.placement import default_sharding
from fdjax.config import derive_config
from fdjax.contract.conditioner import Conditions
from fdjax.run import media, needs, weights
from fdjax.sharding import in_host_memory
from fdjax_models.methods.causal_wan22.config import RUNNER_CONFIGS
from tests.networks.wan_dit.tiny_methods import HEIGHT, WIDTH, shrink

CONFIG = RUNNER_CONFIGS["fastvideo-causal-wan2.2-t2v-14b"]
SMALL = derive_config(
    shrink(CONFIG, "outputs").pipeline,
    conditioner=None,
    decoder=None,
    spatial_compression_ratio=8,
    diffusion_model={
        "transformer": {
            "window_size_t": 2,
            "len_t": 1,
            "network": {"num_layers": 1},
        },
        # Two steps of the one, one of the other.
        "scheduler": {
            "num_inference_steps": 3,
            "denoising_timesteps": (1000, 900, 200),
        },
        "context_noise": 50.0,
    },
)
EXPERTS = ("high_noise", "low_noise")
CONDITIONS = Conditions(text=jax.random.normal(jax.random.key(1), (1, 8, 24)))


def _params(pipeline, share):
    place = None
    if share:
        shapes = pipeline.components["transformer"].param_shapes()
        place = {"transformer": in_host_memory(default_sharding(), shapes, share)}
    return pipeline.init_params(jax.random.key(7), sharding=place)


def _stream(pipeline, params, donate, num_chunks=3):
    cache = pipeline.initialize_cache(
        params, conditions=CONDITIONS, pixel_height=16, pixel_width=32
    )
    latents = []
    for _ in range(num_chunks):
        cache, latent = pipeline.generate(params, cache, donate=donate)
        cache = pipeline.finalize(params, cache, donate=donate)
        latents.append(np.asarray(latent))
    return cache, latents


def _kinds(tree):
    return {leaf.sharding.memory_kind for leaf in jax.tree.leaves(tree)}


def _host_share(tree):
    sizes = [(x.nbytes, x.sharding.memory_kind) for x in jax.tree.leaves(tree)]
    total = sum(size for size, _ in sizes)
    return sum(size for size, kind in sizes if kind == "pinned_host") / total


@pytest.mark.parametrize(
    ("kv_dtype", "share", "donate"),
    [("float8_e4m3fn", 0.5, False), (None, 1.0, True)],
)
def test_the_same_bits_wherever_the_weights_are(kv_dtype, share, donate):
    network = {"transformer": {"kv_dtype": kv_dtype}}
    pipeline = derive_config(SMALL, diffusion_model=network).setup()
    near = _params(pipeline, 0)
    expected, latents = _stream(pipeline, near, donate)
    far = _params(pipeline, share)
    assert _host_share(far["transformer"]) == pytest.approx(share, abs=0.1)
    jax.tree.map(np.testing.assert_array_equal, far, near)
    cache, there = _stream(pipeline, far, donate)
    assert _kinds(cache) == {"device"}
    np.testing.assert_array_equal(there, latents)
    jax.tree.map(
        np.testing.assert_array_equal,
        cache.transformer_cache,
        expected.transformer_cache,
    )
    assert _kinds(far["transformer"]) >= {"pinned_host"}  # not used up


def _count(jaxpr, name, inside=False):
    """Equations of a primitive outside, or inside, of the loops."""
    found = 0
    for eqn in jaxpr.eqns:
        found += eqn.primitive.name == name and not inside
        if eqn.primitive.name == "scan":
            inner = _count(eqn.params["jaxpr"].jaxpr, name)
            found += inner if inside else 0
            continue
        for sub in jaxprs_in_params(eqn.params):
            found += _count(sub, name, inside)
    return found


def test_weights_are_brought_once_per_turn_and_the_second_experts_wait():
    pipeline = SMALL.setup()
    model = pipeline.diffusion_model
    near, far = (_params(pipeline, share)["transformer"] for share in (0, 1.0))
    cache = pipeline.initialize_cache(
        {"transformer": near}, conditions=CONDITIONS, pixel_height=16, pixel_width=32
    ).transformer_cache
    key = jax.random.split(jax.random.key(0), 1)

    def generate(params):
        return model.generate(params, cache, None, key=key)

    def commit(params):
        _, state = generate(near)
        return model.finalize(params, cache, state, key=key)

    for function in (generate, commit):
        plain, moved = (jax.make_jaxpr(function)(each).jaxpr for each in (near, far))
        # Random numbers have barriers of their own; the first expert's weights wait
        # for the noise, or for nothing.
        waits = _count(moved, "optimization_barrier")
        waits -= _count(plain, "optimization_barrier")
        assert waits == (2 if function is generate else 1)
        copies = _count(moved, "device_put") - _count(plain, "device_put")
        assert copies >= len(jax.tree.leaves(far))
        inside = [_count(each, "device_put", inside=True) for each in (plain, moved)]
        assert inside[0] == inside[1]


def test_a_rollout_as_one_scan():
    pipeline = SMALL.setup()
    near, far = (_params(pipeline, share) for share in (0, 1.0))
    cache, _ = _stream(pipeline, near, False, num_chunks=1)
    rollout = jax.jit(lambda p, c: pipeline.rollout(p, c, num_chunks=2)[1])
    np.testing.assert_array_equal(rollout(far, cache), rollout(near, cache))


@pytest.mark.parametrize("suffix", [".safetensors", ""])
def test_checkpoints_are_read_to_where_the_weights_live(tmp_path, suffix):
    config = SMALL.diffusion_model.transformer
    params = config.setup().init_params(jax.random.key(0))
    paths = {name: str(tmp_path / f"{name}{suffix}") for name in EXPERTS}
    for name, part in config.setup().parts.items():
        checkpoint.save(paths[name], params[name], component=part)
    component = dataclasses.replace(
        config,
        checkpoint_path=paths["high_noise"],
        low_noise_checkpoint_path=paths["low_noise"],
    ).setup()
    shapes = component.param_shapes()
    place = in_host_memory(default_sharding(), shapes, 0.6)
    read = checkpoint.load_params(component, sharding=place)
    jax.tree.map(np.testing.assert_array_equal, read, params)
    kinds = jax.tree.map(lambda leaf: leaf.sharding.memory_kind, read)
    assert kinds == jax.tree.map(lambda each: each.memory_kind, place)
    for name in EXPERTS:
        assert _kinds(read[name]) == {"device", "pinned_host"}


def test_run(tmp_path, monkeypatch):
    made = []
    make = weights.make
    monkeypatch.setattr(
        weights, "make", lambda *a, **k: made.append(make(*a, **k)) or made[-1]
    )
    config = shrink(CONFIG, tmp_path, total_blocks=1, prompt="a train")
    config = dataclasses.replace(config, offload_expert=True)
    result = config.setup().run()
    assert media.read_video(result.output).shape == (9, HEIGHT, WIDTH, 3)
    [own] = [each for each in made if "transformer" in each]
    assert _kinds(own["transformer"]) == {"pinned_host"}
    assert _kinds(own["decoder"]) == {"device"}


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_at_full_width_the_device_holds_one_expert(share):
    few = {"diffusion_model": {"transformer": {"network": {"num_layers": 2}}}}
    config = dataclasses.replace(
        derive_config(CONFIG, pipeline=few),
        random_weights=True,
        offload_expert=True,
        offload_share=share,
    )
    conditions = Conditions(text=jax.ShapeDtypeStruct((1, 512, 4096), jnp.bfloat16))
    needed = config.setup()._needs(conditions)
    transformer = config.pipeline.diffusion_model.transformer
    both = needs.memory.num_bytes(checkpoint.param_shapes(transformer.setup()))
    far = needed.host["transformer"]
    # A leaf has at most 142 MB.
    assert far == pytest.approx(share * both, abs=1.5e8)
    near = both * (1 - share) + share * both / 2
    assert needed.weights["transformer"] == pytest.approx(near, abs=1.5e8)
    # Two windows of keys and values.
    assert needed.cache > 2 * 2 * 2 * (21 * 30 * 52) * 5120 * 2


def test_too_little_memory_of_the_host_is_named(monkeypatch):
    monkeypatch.setattr(needs.memory, "host_memory", lambda: 10**9)
    needed = needs.Needs(one_shot={}, weights={}, cache=1, host={"a": 2 * 10**9})
    with pytest.raises(ValueError, match=r"keeps 2\.0 GB .* this machine has 1\.0 GB"):
        needed.check()
    assert needed.of([]).host == {}


@pytest.mark.parametrize("share", [0.0, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match="offload_share must be above 0"):
        dataclasses.replace(CONFIG, offload_share=share)
