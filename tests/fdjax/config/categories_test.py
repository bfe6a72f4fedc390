"""Every component's config has a category, and each place takes one category."""

import dataclasses

import pytest

from fdjax.config import InstantiateConfig, check_config, derive_config
from fdjax.contract.conditioner import (
    Conditioner,
    ConditionerConfig,
    ImageEncoderConfig,
    TextEncoderConfig,
)
from fdjax.contract.decoder import DecoderConfig, StreamingDecoder
from fdjax.contract.encoder import EncoderConfig, NullEncoderConfig, StreamingEncoder
from fdjax.contract.scheduler import Scheduler, SchedulerConfig
from fdjax.contract.transformer import Transformer, TransformerConfig
from fdjax.engine.conditioner import TextImageConditionerConfig
from fdjax.engine.diffusion import DiffusionModelConfig
from fdjax.run import registry
from tests import tiny

WORDS = TextImageConditionerConfig()
PARTS = {
    EncoderConfig: NullEncoderConfig(),
    DecoderConfig: tiny.DoublingDecoderConfig(),
    ConditionerConfig: WORDS,
    TransformerConfig: tiny.MeanTransformerConfig(),
    SchedulerConfig: tiny.TwoStepSchedulerConfig(),
}
PLACES = {
    "encoder": EncoderConfig,
    "decoder": DecoderConfig,
    "conditioner": ConditionerConfig,
    "diffusion_model.transformer": TransformerConfig,
    "diffusion_model.scheduler": SchedulerConfig,
}


def put(place, part):
    """A nested patch that puts a part in a place of the tiny pipeline."""
    *parents, name = place.split(".")
    patch = {name: part}
    for parent in reversed(parents):
        patch = {parent: patch}
    return patch


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("category", PARTS, ids=lambda kind: kind.__name__)
def test_a_place_takes_its_category_only(place, category):
    part, wanted = PARTS[category], PLACES[place]
    if category is wanted:
        assert derive_config(tiny.CONFIG, **put(place, part))
        return
    message = rf"\.{place} must be {wanted.__name__}.*, got a {type(part).__name__}\."
    with pytest.raises(TypeError, match=message):
        derive_config(tiny.CONFIG, **put(place, part))


def test_what_was_put_together_by_hand_is_checked_too():
    wrong = dataclasses.replace(tiny.CONFIG, encoder=tiny.CONFIG.decoder)
    message = "Config.encoder must be EncoderConfig or None, got a DoublingDecoderConf"
    for check in (check_config, type(wrong).setup):
        with pytest.raises(TypeError, match=message):
            check(wrong)
    model = DiffusionModelConfig(
        transformer=tiny.TwoStepSchedulerConfig(),
        scheduler=tiny.TwoStepSchedulerConfig(),
    )
    with pytest.raises(TypeError, match=r"transformer must be TransformerConfig"):
        dataclasses.replace(tiny.CONFIG, diffusion_model=model).setup()


@pytest.mark.parametrize(
    ("category", "component"),
    [
        (ConditionerConfig, Conditioner),
        (EncoderConfig, StreamingEncoder),
        (DecoderConfig, StreamingDecoder),
        (TransformerConfig, Transformer),
        (SchedulerConfig, Scheduler),
    ],
)
def test_a_category_says_what_it_sets_up(category, component):
    [base] = category.__orig_bases__
    assert base == InstantiateConfig[component]
    assert isinstance(PARTS[category].setup(), component)


def test_parts_of_our_methods_are_what_their_category_says():
    for config in registry.runner_configs().values():
        check_config(config)
        for component in config.pipeline.setup().components.values():
            categories = (*PARTS, TextEncoderConfig, ImageEncoderConfig)
            assert isinstance(component.config, categories)
