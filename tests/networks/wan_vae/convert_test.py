"""Key layouts of the Wan VAEs: published keys, detection, there and back."""

import jax
import ml_dtypes
import numpy as np
import pytest

from fdjax_convert import recognise, rules
from fdjax_convert.formats import readers
from fdjax_convert.rules.problems import ConversionError
from fdjax_convert.tables import layouts, wan_vae
from fdjax_models.networks.wan_vae import vae

FULL = {
    ("2.1", "encoder"): vae.WAN21_VAE_ENCODER,
    ("2.1", "decoder"): vae.WAN21_VAE_DECODER,
    ("2.2", "encoder"): vae.WAN22_VAE_ENCODER,
    ("2.2", "decoder"): vae.WAN22_VAE_DECODER,
}
SHAPES_21 = {
    "conv1.weight": (32, 32, 1, 1, 1),
    "conv2.weight": (16, 16, 1, 1, 1),
    "encoder.conv1.weight": (96, 3, 3, 3, 3),
    "encoder.downsamples.0.residual.0.gamma": (96, 1, 1, 1),
    "encoder.downsamples.2.resample.1.weight": (96, 96, 3, 3),
    "encoder.downsamples.3.shortcut.weight": (192, 96, 1, 1, 1),
    "encoder.downsamples.5.resample.1.weight": (192, 192, 3, 3),
    "encoder.downsamples.5.time_conv.weight": (192, 192, 3, 1, 1),
    "encoder.downsamples.8.time_conv.weight": (384, 384, 3, 1, 1),
    "encoder.downsamples.10.residual.6.weight": (384, 384, 3, 3, 3),
    "encoder.middle.1.norm.gamma": (384, 1, 1),
    "encoder.middle.1.to_qkv.weight": (1152, 384, 1, 1),
    "encoder.middle.1.proj.weight": (384, 384, 1, 1),
    "encoder.head.0.gamma": (384, 1, 1, 1),
    "encoder.head.2.weight": (32, 384, 3, 3, 3),
    "decoder.upsamples.3.resample.1.weight": (192, 384, 3, 3),
    "decoder.upsamples.3.time_conv.weight": (768, 384, 3, 1, 1),
    "decoder.upsamples.4.shortcut.weight": (384, 192, 1, 1, 1),
    "decoder.upsamples.7.time_conv.weight": (768, 384, 3, 1, 1),
    "decoder.upsamples.11.resample.1.weight": (96, 192, 3, 3),
    "decoder.upsamples.14.residual.6.bias": (96,),
    "decoder.head.2.weight": (3, 96, 3, 3, 3),
}
SHAPES_22 = {
    "conv1.weight": (96, 96, 1, 1, 1),
    "conv2.weight": (48, 48, 1, 1, 1),
    "encoder.conv1.weight": (160, 12, 3, 3, 3),
    "encoder.downsamples.1.downsamples.0.shortcut.weight": (320, 160, 1, 1, 1),
    "encoder.downsamples.1.downsamples.2.time_conv.weight": (320, 320, 3, 1, 1),
    "encoder.head.2.weight": (96, 640, 3, 3, 3),
    "decoder.conv1.weight": (1024, 48, 3, 3, 3),
    "decoder.upsamples.0.upsamples.3.time_conv.weight": (2048, 1024, 3, 1, 1),
    "decoder.upsamples.2.upsamples.3.resample.1.weight": (512, 512, 3, 3),
    "decoder.head.2.weight": (12, 256, 3, 3, 3),
}


def _tables(name, kind):
    return {
        part: next(
            layout
            for layout in wan_vae.LAYOUTS
            if layout.name == f"{name} {kind}"
            and layout.architecture == f"wan_vae_{part}"
        )
        for part in ("encoder", "decoder")
    }


def _small(kind, part, dtype="float32"):
    config = {"encoder": vae.WanVaeEncoderConfig, "decoder": vae.WanVaeDecoderConfig}
    component = config[part](
        widths=(2, 4, 6, 6) if kind == "2.1" else (2, 4, 8, 8),
        latent_mean=(0.0,) * 3,
        latent_std=(1.0,) * 3,
        residual_stages=kind == "2.2",
        patch={"2.1": 1, "2.2": 2}[kind],
        dtype=dtype,
    ).setup()
    return component.param_shapes()


@pytest.mark.parametrize("name", ["official", "diffusers"])
@pytest.mark.parametrize(
    ("kind", "expected", "count"), [("2.1", SHAPES_21, 194), ("2.2", SHAPES_22, 196)]
)
def test_published_keys(name, kind, expected, count):
    tables, written = _tables(name, kind), {}
    for part, layout in tables.items():
        shapes = FULL[kind, part].setup().param_shapes()
        written |= rules.export(shapes, layout.rules)
    assert len(written) == count
    if name == "official":
        for key, shape in expected.items():
            assert written[key].shape == shape, key
    # One file is recognised as exactly these two networks, and each takes its part.
    assert layouts.detect(written) == tuple(tables.values())
    sizes = {key: tensor.shape for key, tensor in written.items()}
    for part, layout in tables.items():
        shapes = FULL[kind, part].setup().param_shapes()
        steps = rules.Conversion(written, layout.rules, shapes).steps
        assert sum(len(step.paths) for step in steps) == len(jax.tree.leaves(shapes))
        assert layout.describe(sizes).endswith(f"VAE {part}")
        assert f"Wan {kind}" in layout.describe(sizes)


@pytest.mark.parametrize("name", ["official", "diffusers"])
@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize(("kind", "other"), [("2.1", "2.2"), ("2.2", "2.1")])
def test_one_vae_in_the_others_place_is_named(tmp_path, name, part, kind, other):
    """What `Wan2.1_VAE.pth` holds, given to 2.2's networks, and the reverse."""
    tables, tensors = _tables(name, kind), {}
    for each, layout in tables.items():
        tensors |= rules.export(FULL[kind, each].setup().param_shapes(), layout.rules)
    # Of a small file the values are looked at, too; these take no memory.
    tensors = {k: np.broadcast_to(np.float32(0), v.shape) for k, v in tensors.items()}
    opened = readers.Checkpoint(tmp_path / "vae.pth", (), tensors)
    asked = FULL[other, part].setup()
    message = rf"vae\.pth is Wan {kind} .*; you asked for Wan {other} .*VAE {part}"
    with pytest.raises(ConversionError, match=message):
        recognise.match(recognise.select(opened, asked.architecture), asked)


@pytest.mark.parametrize("layout", wan_vae.LAYOUTS, ids=lambda x: x.name)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_there_and_back(layout, dtype):
    part = layout.architecture.removeprefix("wan_vae_")
    shapes = _small(layout.name.split()[1], part, np.dtype(dtype).name)
    generator = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: generator.normal(size=leaf.shape).astype(dtype), shapes
    )
    published = rules.to_torch(params, layout.rules)
    back = rules.convert(published, layout.rules, shapes)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(back)} == {np.dtype(dtype)}
    one = next(iter(published))
    del published[one]
    published[f"{part}.unknown.weight"] = np.zeros(1, dtype)
    with pytest.raises(ValueError, match=rf"{part}\.unknown\.weight") as error:
        rules.convert(published, layout.rules, shapes)
    assert one in str(error.value)


def test_every_rule_is_used():
    for layout in wan_vae.LAYOUTS:
        part = layout.architecture.removeprefix("wan_vae_")
        shapes = FULL[layout.name.split()[1], part].setup().param_shapes()
        written = rules.export(shapes, layout.rules)
        used = {
            step.rule for step in rules.Conversion(written, layout.rules, shapes).steps
        }
        idle = [
            rule.source
            for rule in layout.rules
            if rule not in used and not isinstance(rule.target, rules.Drop)
        ]
        # Blocks that keep their width have no shortcut; not every step halves time.
        assert all("shortcut" in source or "time_conv" in source for source in idle)
