"""Streaming inference for autoregressive video and world models, in functional JAX.

pipeline = fdjax.runner_configs()["maze-world"].pipeline.setup()
params = pipeline.load_params()
cache = pipeline.initialize_cache(params, text=["a red brick maze"], ...)
for control in controls:
    cache, video = pipeline.generate(params, cache, control)
    cache = pipeline.finalize(params, cache)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fdjax.conditioner import Conditions
    from fdjax.config import Component, InstantiateConfig, derive_config
    from fdjax.decoder import StreamingDecoder
    from fdjax.diffusion import DiffusionModel, DiffusionModelConfig, FinalState
    from fdjax.encoder import NullEncoder, NullEncoderConfig, StreamingEncoder
    from fdjax.pipeline import StreamInferencePipeline, StreamInferencePipelineConfig
    from fdjax.pipeline_cache import StreamInferencePipelineCache
    from fdjax.registry import runner_configs
    from fdjax.runner import Runner, RunnerConfig
    from fdjax.transformer import Transformer

# Resolved on first use, so that `import fdjax` stays light.
_EXPORTS = {
    "Component": "config",
    "Conditions": "conditioner",
    "DiffusionModel": "diffusion",
    "DiffusionModelConfig": "diffusion",
    "FinalState": "diffusion",
    "InstantiateConfig": "config",
    "NullEncoder": "encoder",
    "NullEncoderConfig": "encoder",
    "Runner": "runner",
    "RunnerConfig": "runner",
    "StreamInferencePipeline": "pipeline",
    "StreamInferencePipelineCache": "pipeline_cache",
    "StreamInferencePipelineConfig": "pipeline",
    "StreamingDecoder": "decoder",
    "StreamingEncoder": "encoder",
    "Transformer": "transformer",
    "derive_config": "config",
    "runner_configs": "registry",
}

__all__ = [
    "Component",
    "Conditions",
    "DiffusionModel",
    "DiffusionModelConfig",
    "FinalState",
    "InstantiateConfig",
    "NullEncoder",
    "NullEncoderConfig",
    "Runner",
    "RunnerConfig",
    "StreamInferencePipeline",
    "StreamInferencePipelineCache",
    "StreamInferencePipelineConfig",
    "StreamingDecoder",
    "StreamingEncoder",
    "Transformer",
    "derive_config",
    "runner_configs",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"fdjax.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'fdjax' has no attribute {name!r}")
