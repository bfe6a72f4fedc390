"""Conditioners: the one of text and image, and one that a method brings along."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdjax
from fdjax.contract.conditioner import (
    Conditioner,
    ConditionerConfig,
    Conditions,
    ImageEncoder,
    ImageEncoderConfig,
    TextEncoder,
    TextEncoderConfig,
)
from fdjax.engine.conditioner import TextImageConditionerConfig
from fdjax.run.conditions_store import WeightsOnDemand, cached, cached_encode
from tests import tiny

CALLS = []


class Lengths(TextEncoder):
    """A row of the length of each prompt."""

    def init_params(self, key):
        return {"w": jnp.full((4,), 0.25)}

    def load_params(self):
        CALLS.append("load")
        return self.init_params(None)

    def tokenize(self, text):
        return np.array([[len(each)] for each in text], np.float32)

    def encode(self, params, text):
        CALLS.append(tuple(text))
        return self.tokenize(text)[..., None] * params["w"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LengthsConfig(TextEncoderConfig):
    _target: type = Lengths
    checkpoint_path: str | None = "hf://somewhere/lengths.safetensors"


class Brightness(ImageEncoder):
    """The mean of each image."""

    def init_params(self, key):
        return {}

    def encode(self, params, image):
        CALLS.append(image.shape)
        return image.mean((1, 2, 3))[:, None, None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BrightnessConfig(ImageEncoderConfig):
    _target: type = Brightness


TEXT = TextImageConditionerConfig(text_encoder=LengthsConfig())
BOTH = dataclasses.replace(
    TEXT, image_encoder=BrightnessConfig(), negative_prompt="ugly"
)
PARAMS = {"text_encoder": {"w": jnp.ones(4)}, "image_encoder": {}}
IMAGE = jnp.linspace(-1, 1, 2 * 6 * 8 * 3).reshape(2, 6, 8, 3)


@pytest.fixture(autouse=True)
def calls():
    CALLS.clear()
    return CALLS


def test_text_negative_text_and_image():
    got = BOTH.setup().encode(PARAMS, text=["a", "abc"], image=IMAGE)
    np.testing.assert_array_equal(got.text[:, 0, 0], [1, 3])
    np.testing.assert_array_equal(got.negative_text[:, 0, 0], [4, 4])
    np.testing.assert_array_equal(got.image_embedding[:, 0, 0], IMAGE.mean((1, 2, 3)))
    np.testing.assert_array_equal(got.image, IMAGE)
    assert got.batch_size == 2


def test_what_is_not_given_is_not_encoded(calls):
    got = BOTH.setup().encode({"text_encoder": PARAMS["text_encoder"]}, text=["a"])
    assert (got.image, got.image_embedding) == (None, None)
    got = BOTH.setup().encode({"image_encoder": {}}, image=IMAGE)
    assert (got.text, got.negative_text) == (None, None)
    assert calls == [("a",), ("ugly",), IMAGE.shape]
    assert BOTH.setup().encode({}) == Conditions()


def test_an_image_needs_no_encoder():
    for config in (TEXT, TextImageConditionerConfig()):
        got = config.setup().encode({}, image=np.asarray(IMAGE))
        assert (got.text, got.image_embedding) == (None, None)
        np.testing.assert_array_equal(got.image, IMAGE)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"text": "a beach"}, r"write \['a beach'\]"),
        ({"text": []}, "at least one prompt"),
        ({"text": ["a", None]}, "must hold prompts, got None"),
        ({"text": ["a"], "image": IMAGE}, "got 1 prompts and 2 images"),
        ({"image": IMAGE[0]}, r"\[B, H, W, 3\].*got shape \(6, 8, 3\)"),
        ({"image": IMAGE[..., :1]}, r"got shape \(2, 6, 8, 1\)"),
        ({"image": IMAGE[:0]}, r"got shape \(0, 6, 8, 3\)"),
        ({"image": np.zeros((2, 6, 8, 3), np.uint8)}, "uint8; bytes from 0 to 255"),
        ({"image": jnp.zeros((2, 6, 8, 3), jnp.int32)}, "floating point .* int32"),
        ({"image": 127.5 * (IMAGE + 1)}, "got values from 0 to 255; scale"),
        ({"image": IMAGE.at[0, 0, 0, 0].set(-1.1)}, "values from -1.1 to 1"),
        ({"image": IMAGE.at[1, 2, 3, 0].set(jnp.nan)}, "from nan to nan"),
        ({"image": IMAGE.at[1, 2, 3, 0].set(jnp.inf)}, "to inf"),
        ({"pose": 1}, r"takes text and image, got \['pose'\] too"),
    ],
)
def test_bad_inputs_are_refused_before_anything_runs(calls, inputs, message):
    with pytest.raises(ValueError, match=message):
        BOTH.setup().encode({}, **inputs)
    assert calls == []


def test_text_that_nothing_encodes_is_refused():
    with pytest.raises(ValueError, match=r"set conditioner\.text_encoder"):
        TextImageConditionerConfig().setup().encode({}, text=["a"])


def test_a_negative_prompt_needs_its_encoder():
    with pytest.raises(ValueError, match="negative_prompt needs a text_encoder"):
        dataclasses.replace(BOTH, text_encoder=None)


def test_missing_params_are_named_before_anything_runs(calls):
    params = {"text_encoder": PARAMS["text_encoder"]}
    with pytest.raises(ValueError, match=r"load_params\(only=\['image_encoder'\]\)"):
        BOTH.setup().encode(params, text=["a", "b"], image=IMAGE)
    assert calls == []


def test_rounding_and_other_floats_are_fine():
    nearly = IMAGE * (1 + 1e-6)
    for image in (nearly, IMAGE.astype(jnp.bfloat16), np.asarray(IMAGE, np.float64)):
        assert TEXT.setup().encode({}, image=image).image.shape == IMAGE.shape


def test_a_traced_image_is_checked_by_its_shape():
    def encode(image):
        return TEXT.setup().encode({}, image=image).image

    np.testing.assert_array_equal(jax.jit(encode)(IMAGE), IMAGE)
    with pytest.raises(ValueError, match="got shape"):
        jax.eval_shape(encode, IMAGE[0])


def test_another_kind_of_part_is_refused():
    with pytest.raises(TypeError, match="text_encoder must be TextEncoderConfig"):
        fdjax.derive_config(TEXT, text_encoder=BrightnessConfig())
    with pytest.raises(TypeError, match="conditioner must be ConditionerConfig"):
        fdjax.derive_config(tiny.CONFIG, conditioner=LengthsConfig())


def test_parts_are_components_of_the_pipeline():
    pipeline = dataclasses.replace(tiny.CONFIG, conditioner=BOTH).setup()
    own = ["transformer", "encoder", "decoder"]
    assert list(pipeline.components) == [*own, "text_encoder", "image_encoder"]
    params = pipeline.init_params(jax.random.key(0), only=["text_encoder"])
    assert list(params) == ["text_encoder"]
    got = pipeline.encode_conditions(params, text=["abcd"])
    np.testing.assert_array_equal(got.text, np.ones((1, 1, 4)))


# A method's own: several views, a pooled vector, and an embedding made elsewhere.


@flax.struct.dataclass(kw_only=True)
class ViewConditions(Conditions):
    pooled: jax.Array
    views: dict[str, jax.Array]
    style: jax.Array | None = None


class ViewConditioner(Conditioner):
    @property
    def parts(self):
        return {name: LengthsConfig().setup() for name in self.config.names}

    def encode(self, params, *, text=None, image=None, views=None, style=None):
        first, second = (
            self.encode_part(params, name, text) for name in self.config.names
        )
        return ViewConditions(
            text=first, pooled=second.mean((1, 2)), views=views, style=style
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewConditionerConfig(ConditionerConfig):
    _target: type = ViewConditioner
    names: tuple[str, str] = ("first", "second")


VIEWS = {"left": IMAGE, "right": -IMAGE}
TWO = {"first": {"w": jnp.ones(4)}, "second": {"w": jnp.full((4,), 2.0)}}


def test_a_conditioner_of_a_method_runs_a_pipeline():
    config = dataclasses.replace(tiny.CONFIG, conditioner=ViewConditionerConfig())
    pipeline = config.setup()
    params = pipeline.init_params(jax.random.key(0)) | TWO
    assert {"first", "second"} <= set(pipeline.components)
    style = jnp.zeros((2, 5))
    conditions = pipeline.encode_conditions(
        params, text=["a", "bc"], views=VIEWS, style=style
    )
    np.testing.assert_array_equal(conditions.pooled, [2, 4])
    cache = pipeline.initialize_cache(
        params, conditions=conditions, pixel_height=6, pixel_width=8
    )
    _, video = pipeline.generate(params, cache, jnp.zeros(2))
    assert len(video) == conditions.batch_size == 2
    assert jax.tree.map(jnp.shape, conditions).views["left"] == IMAGE.shape


def test_batch_size_reads_every_array():
    fields = {"text": jnp.zeros((2, 3)), "pooled": jnp.zeros(2), "views": VIEWS}
    assert ViewConditions(**fields).batch_size == 2
    with pytest.raises(ValueError, match=r"views\['left'\]\": 1"):
        ViewConditions(**fields | {"views": {"left": IMAGE[:1]}}).batch_size  # noqa: B018
    with pytest.raises(ValueError, match="'style': 3"):
        ViewConditions(**fields, style=jnp.zeros((3, 2))).batch_size  # noqa: B018
    with pytest.raises(ValueError, match="pooled has no axes"):
        ViewConditions(pooled=jnp.float32(1), views={}).batch_size  # noqa: B018
    assert Conditions().batch_size == 1


def test_the_store_needs_no_hook_in_a_conditioner(calls, tmp_path, monkeypatch):
    monkeypatch.setitem(cached_encode.__kwdefaults__, "keep_from", 0)
    conditioner = ViewConditionerConfig().setup()
    kept = cached(conditioner, directory=tmp_path)
    assert kept != conditioner
    assert kept.parts == conditioner.parts

    def load(*, only):
        return {name: conditioner.parts[name].load_params() for name in only}

    def encode(text):
        weights = WeightsOnDemand(load, list(conditioner.parts))
        return kept.encode(weights, text=text, views=VIEWS)

    first = encode(["a", "bc"])
    # One config: what the first part encoded, the second finds.
    assert calls == ["load", ("a",), ("bc",)]
    jax.tree.map(np.testing.assert_array_equal, encode(["a", "bc"]), first)
    assert calls == ["load", ("a",), ("bc",)]


@pytest.mark.parametrize("name", ["transformer", "decoder"])
def test_a_part_with_a_taken_name_is_refused(name):
    conditioner = ViewConditionerConfig(names=("first", name))
    pipeline = dataclasses.replace(tiny.CONFIG, conditioner=conditioner).setup()
    with pytest.raises(ValueError, match=rf"got \['{name}'\]"):
        _ = pipeline.components


def test_whether_prompts_are_read():
    assert TEXT.setup().takes_text
    assert ViewConditionerConfig().setup().takes_text
    assert (
        not TextImageConditionerConfig(image_encoder=BrightnessConfig())
        .setup()
        .takes_text
    )


EMBEDDINGS = jnp.arange(2 * 3 * 4.0).reshape(2, 3, 4)


def test_embeddings_need_neither_tokenizer_nor_text_encoder(calls):
    conditioner = BOTH.setup()
    made = conditioner.encode(
        {"image_encoder": {}},
        text_embeddings=EMBEDDINGS,
        negative_text_embeddings=EMBEDDINGS[:1, :2],
        image=IMAGE,
    )
    assert calls == [IMAGE.shape]
    np.testing.assert_array_equal(made.text, EMBEDDINGS)
    np.testing.assert_array_equal(made.negative_text[1], EMBEDDINGS[0, :2])
    assert made.negative_text.shape == (2, 2, 4)
    assert made.image is not None
    assert made.image_embedding.shape == (2, 1, 1)
    bare = TextImageConditionerConfig().setup()
    text = bare.encode({}, text_embeddings=np.asarray(EMBEDDINGS))
    np.testing.assert_array_equal(text.text, EMBEDDINGS)
    assert text.negative_text is None
    assert text.image is None


def test_embeddings_of_prompts_condition_as_the_prompts_do():
    conditioner, prompts = BOTH.setup(), ["a", "long"]
    encoded = conditioner.encode(PARAMS, text=prompts, image=IMAGE)
    again = conditioner.encode(
        PARAMS,
        text_embeddings=encoded.text,
        negative_text_embeddings=encoded.negative_text,
        image=IMAGE,
    )
    jax.tree.map(np.testing.assert_array_equal, again, encoded)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text": ["a"], "text_embeddings": EMBEDDINGS}, "not both"),
        ({"negative_text_embeddings": EMBEDDINGS}, "no negative ones alone"),
        ({"text_embeddings": EMBEDDINGS[0]}, r"be \[B, P, C\], got shape \(3, 4\)"),
        ({"text_embeddings": np.ones((2, 3, 4), np.int32)}, "floating point, got int"),
        ({"text_embeddings": EMBEDDINGS / 0}, "must be finite"),
        ({"text_embeddings": EMBEDDINGS[:1], "image": IMAGE}, "one row per image"),
        (
            {
                "text_embeddings": EMBEDDINGS,
                "negative_text_embeddings": jnp.ones((3, 2, 4)),
            },
            r"one row or as many, got \(3, 2, 4\)",
        ),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        BOTH.setup().encode(PARAMS, **given)
