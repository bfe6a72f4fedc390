"""Embeddings that are kept in a file: runs without encoders, and what goes wrong."""

import dataclasses
import json
import logging

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax import checkpoint
from fdjax.checkpoint import safetensors_format
from fdjax.config import derive_config
from fdjax.contract.conditioner import Conditions, TextEncoder, TextEncoderConfig
from fdjax.engine.conditioner import TextImageConditionerConfig
from fdjax.run import cli, downloads, embeddings, needs, plugins
from fdjax.run.runner import Runner, RunnerConfig
from tests import tiny
from tests.tiny_runner import CONFIG as NO_CONDITIONER

LOADED = []


class Letters(TextEncoder):
    """Encodes a prompt as the codes of its letters."""

    def init_params(self, key):
        return {"scale": jnp.ones(())}

    def tokenize(self, text):
        return np.array([[ord(letter) for letter in prompt[:3]] for prompt in text])

    def encode(self, params, text):
        codes = params["scale"] * self.tokenize(text) / self.config.divisor
        return jnp.tile(codes[..., None], 4).astype(self.config.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LettersConfig(TextEncoderConfig):
    _target: type = Letters
    checkpoint_path: str | None = "letters.safetensors"
    divisor: float = 100.0
    dtype: str = "float32"


class NeedyTransformer(tiny.MeanTransformer):
    """Guided, if the config says so."""

    def initialize_cache(self, params, conditions, height, width):
        if self.config.guided and conditions.negative_text is None:
            raise ValueError("The network needs conditions.negative_text, got None.")
        return super().initialize_cache(params, conditions, height, width)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeedyTransformerConfig(tiny.MeanTransformerConfig):
    _target: type = NeedyTransformer
    guided: bool = False


class PictureRunner(Runner):
    """Starts from a white picture where the config says so."""

    def read_inputs(self):
        inputs = super().read_inputs()
        if not self.config.picture or self.config.embeddings_path is not None:
            return inputs
        size = self.config.pixel_height, self.config.pixel_width
        return dataclasses.replace(inputs, image=np.ones((1, *size, 3), np.float32))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureRunnerConfig(RunnerConfig):
    _target: type = PictureRunner
    picture: bool = False


PIPELINE = derive_config(
    tiny.CONFIG,
    encoder=None,
    decoder=None,
    spatial_compression_ratio=2,
    diffusion_model={"transformer": NeedyTransformerConfig()},
    conditioner=TextImageConditionerConfig(text_encoder=LettersConfig()),
)
CONFIG = PictureRunnerConfig(
    runner_name="letters",
    pipeline=PIPELINE,
    prompt="a beach",
    total_blocks=2,
    pixel_height=6,
    pixel_width=8,
    random_weights=True,
)
RUNNER_CONFIGS = {"letters": CONFIG}


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A run whose encoder's weights are watched."""
    make = Letters.init_params

    def watched(self, key):
        if not isinstance(key, jax.core.Tracer):
            LOADED.append("Letters")
        return make(self, key)

    monkeypatch.setattr(Letters, "init_params", watched)
    LOADED.clear()
    return derive_config(CONFIG, output_dir=tmp_path / "out")


@pytest.fixture
def kept(config, tmp_path):
    """A file of embeddings; nothing else was written or loaded for it."""
    path = tmp_path / "kept" / "a.safetensors"
    result = derive_config(config, save_embeddings_path=path).setup().run()
    assert result.files == (path,)
    assert not (tmp_path / "out").exists()
    assert LOADED.count("Letters") == 1
    LOADED.clear()
    return path


@pytest.fixture
def no_weights(monkeypatch):
    """Whatever is refused is so before any weight is made."""
    monkeypatch.setattr(
        Runner, "load_weights", lambda *_, **__: pytest.fail("weights made")
    )


@pytest.mark.parametrize("changes", [{}, {"picture": True}])
def test_the_video_is_the_same_and_no_encoder_is_loaded(config, tmp_path, changes):
    config = derive_config(config, **changes)
    want = np.load(config.setup().run().output)
    path = tmp_path / "a"
    derive_config(config, save_embeddings_path=str(path)).setup().run()
    LOADED.clear()
    # The prompt is not read: neither this one nor the file that is not there.
    for number, prompt in enumerate(["", "none.txt"]):
        run = derive_config(
            config,
            embeddings_path=path,
            prompt=prompt,
            output_dir=tmp_path / f"{number}",
        )
        np.testing.assert_array_equal(np.load(run.setup().run().output), want)
    assert not LOADED


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_bit_of_any_conditions_comes_back(tmp_path, dtype):
    encoder = {"text_encoder": {"dtype": dtype}, "negative_prompt": "bad"}
    conditioner = derive_config(PIPELINE.conditioner, **encoder).setup()
    key = jax.random.key(0)
    values = jax.random.normal(key, (3, 5, 4)).astype(dtype)
    want = MoreConditions(
        text=values, negative_text=-values, image=jnp.ones((3, 2, 4, 3)), extra=values
    )
    about = {"conditioner": conditioner, "size": (2, 4)}
    embeddings.save_embeddings(tmp_path / "a", want, **about)
    got = embeddings.load_embeddings(tmp_path / "a", **about)
    assert type(got) is MoreConditions
    assert got.label == "x"
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert got.text.dtype == jnp.dtype(dtype)


@flax.struct.dataclass(kw_only=True)
class MoreConditions(Conditions):
    extra: jax.Array
    label: str = flax.struct.field(pytree_node=False, default="x")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"text_encoder": {"divisor": 50.0}},
            r"text_encoder\.divisor: 100\.0 there, 50",
        ),
        ({"text_encoder": {"dtype": "bfloat16"}}, r"text_encoder\.dtype: 'float32'"),
        (
            {"text_encoder": {"checkpoint_path": "other"}},
            r"checkpoint_path: 'letters\.safetensors' there, 'other' here",
        ),
        ({"negative_prompt": "xyz"}, "negative_prompt: None there, 'xyz' here"),
    ],
)
def test_embeddings_of_another_encoder_are_refused(
    config, kept, no_weights, changes, named
):
    other = derive_config(
        config, embeddings_path=kept, pipeline={"conditioner": changes}
    )
    with pytest.raises(ValueError, match=rf"another encoder or .*{named}"):
        other.setup().run()


def test_random_embeddings_are_not_for_trained_weights(config, kept, no_weights):
    trained = derive_config(config, embeddings_path=kept, random_weights=False)
    with pytest.raises(ValueError, match="weights: 'random' there, 'trained' here"):
        trained.setup().run()


def test_guidance_needs_negative_embeddings(config, kept, no_weights):
    model = {"transformer": {"guided": True}}
    guided = derive_config(
        config, embeddings_path=kept, pipeline={"diffusion_model": model}
    )
    with pytest.raises(ValueError, match=r"needs conditions\.negative_text"):
        guided.setup().run()


def test_a_first_frame_is_for_its_size(config, tmp_path):
    path = tmp_path / "a"
    pictured = derive_config(config, picture=True)
    derive_config(pictured, save_embeddings_path=path).setup().run()
    wider = derive_config(pictured, embeddings_path=path, pixel_width=12)
    with pytest.raises(ValueError, match="6 x 8 pixels, this run is 6 x 12"):
        wider.setup().run()


def test_text_is_for_any_size(config, kept):
    wider = derive_config(config, embeddings_path=kept, pixel_width=12)
    assert np.load(wider.setup().run().output).shape[2:4] == (3, 6)


def _header(path):
    tensors, metadata = safetensors_format.read_safetensors(path)
    values = {name: np.array(tensor.read()) for name, tensor in tensors.items()}
    return values, json.loads(metadata["fdjax_embeddings"])


def _write(path, values, header):
    header = {"fdjax_embeddings": json.dumps(header)}
    safetensors_format.write_safetensors(path, values, header)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-5])


def _empty(path):
    path.write_bytes(b"")


def _flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def _other_size(path):
    values, header = _header(path)
    _write(path, values, header | {"size": [2, 2]})


def _other_format(path):
    values, header = _header(path)
    _write(path, values, header | {"format": 99})


def _no_size(path):
    values, header = _header(path)
    _write(path, values, header | {"size": "big"})


def _plain(path):
    safetensors_format.write_safetensors(path, {"x": np.ones(3)}, {})


def _other_class(path):
    values, header = _header(path)
    header["structure"]["class"] = "os:system"
    header["sha256"] = embeddings._digest(header, values)
    _write(path, values, header)


def _array_lost(path):
    _, header = _header(path)
    header["sha256"] = embeddings._digest(header, {})
    _write(path, {}, header)


def _nan(path):
    values, header = _header(path)
    values["conditions.text"][0, 0, 0] = np.nan
    header["sha256"] = embeddings._digest(header, values)
    _write(path, values, header)


def _gone(path):
    path.unlink()


def _folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, "truncated"),
        (_empty, "holds no embeddings"),
        (_flip, "does not match its checksum"),
        (_other_size, "does not match its checksum"),
        (_other_format, "format 1, it is of format 99"),
        (_no_size, "holds no embeddings"),
        (_plain, "holds no embeddings"),
        (_other_class, "cannot be read: it needs the class os:system"),
        (_array_lost, "cannot be read: its structure is damaged"),
        (_nan, "cannot be used: .*NaN"),
        (_gone, "no embeddings at"),
        (_folder, "is a folder"),
    ],
)
def test_a_file_that_is_damaged_is_refused(config, kept, no_weights, damage, message):
    damage(kept)
    with pytest.raises((ValueError, OSError), match=message) as caught:
        derive_config(config, embeddings_path=kept).setup().run()
    assert str(kept) in str(caught.value)


def test_a_place_that_cannot_be_written_is_found_first(
    config, kept, no_weights, tmp_path
):
    (tmp_path / "file").touch()
    for path, message in {
        kept: "exists; remove it",
        tmp_path: "is a folder",
        tmp_path / "file" / "a": "cannot be written",
    }.items():
        with pytest.raises(OSError, match=message):
            derive_config(config, save_embeddings_path=path).setup().run()


def test_overwrite_replaces(config, kept):
    before = kept.read_bytes()
    derive_config(
        config, save_embeddings_path=kept, overwrite=True, prompt="xyz"
    ).setup().run()
    assert kept.read_bytes() != before


@pytest.mark.parametrize("other", ["save_embeddings_path", "resume"])
def test_only_one_origin_of_conditions(config, other):
    with pytest.raises(ValueError, match=f"Give one of .*{other}"):
        derive_config(config, embeddings_path="a", **{other: "b"})


def test_without_a_conditioner_there_is_nothing_to_keep(no_weights, tmp_path):
    for name in ("save_embeddings_path", "embeddings_path"):
        config = derive_config(NO_CONDITIONER, **{name: tmp_path / "a"})
        with pytest.raises(ValueError, match="no encoder of conditions"):
            config.setup().run()
    assert not list(tmp_path.iterdir())


def test_only_what_is_read_is_looked_for_and_counted(
    config, tmp_path, monkeypatch, caplog
):
    """Downloads, files and memory: the encoder in one run, all else in the other."""
    sources, counted = [], []
    check = needs.Needs.check
    monkeypatch.setattr(downloads, "announce", lambda found: sources.append([*found]))
    monkeypatch.setattr(
        needs.Needs, "check", lambda self: (counted.append(self), check(self))
    )
    monkeypatch.setattr(
        checkpoint,
        "load_params",
        lambda part, *, sharding=None: part.init_params(jax.random.key(0)),
    )
    path, weights = tmp_path / "a", tmp_path / "letters"
    weights.touch()
    encoder = {"text_encoder": {"checkpoint_path": str(weights)}}
    trained = derive_config(
        config, random_weights=False, pipeline={"conditioner": encoder}
    )
    derive_config(trained, save_embeddings_path=path).setup().run()
    assert sources.pop() == [str(weights)]
    assert set(counted[-1].one_shot) == {"text_encoder"}
    assert not counted[-1].weights
    assert not counted[-1].cache
    weights.unlink()  # the file of the encoder's weights is not needed any more
    with caplog.at_level(logging.INFO):
        derive_config(trained, embeddings_path=path).setup().run()
    assert sources.pop() == []
    assert not counted[-1].one_shot
    assert set(counted[-1].weights) == {"transformer"}
    assert f"Prompt and image are those of {path}" in caplog.text
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        trained.setup().run()


def test_mistakes_are_one_line_at_the_command_line(kept, tmp_path, monkeypatch, capsys):
    module = "tests.fdjax.run.embeddings_test"
    monkeypatch.setenv(plugins.VARIABLE, f"letters={module}:RUNNER_CONFIGS")
    _flip(kept)
    for flags, message in {
        (f"--embeddings_path={kept}",): "checksum",
        (f"--save_embeddings_path={kept}",): "exists",
        ("--embeddings_path=a", "--save_embeddings_path=b"): "Give one of",
    }.items():
        assert cli.run(["letters", *flags, f"--output_dir={tmp_path}/out"]) == 2
        errors = [x for x in capsys.readouterr().err.splitlines() if "RANDOM" not in x]
        assert len(errors) == 1
        assert message in errors[0]
