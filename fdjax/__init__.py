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
    from fdjax.config import Component, InstantiateConfig, derive_config
    from fdjax.contract.conditioner import (
        Conditioner,
        ConditionerConfig,
        Conditions,
        ImageEncoder,
        TextEncoder,
    )
    from fdjax.contract.decoder import DecoderConfig, StreamingDecoder
    from fdjax.contract.encoder import (
        EncoderConfig,
        NullEncoder,
        NullEncoderConfig,
        StreamingEncoder,
    )
    from fdjax.contract.scheduler import Scheduler, SchedulerConfig
    from fdjax.contract.transformer import Transformer, TransformerConfig
    from fdjax.engine.cache import (
        StreamInferencePipelineCache,
        put_session,
        stack_caches,
        take_session,
    )
    from fdjax.engine.conditioner import (
        TextImageConditioner,
        TextImageConditionerConfig,
    )
    from fdjax.engine.diffusion import DiffusionModel, DiffusionModelConfig, FinalState
    from fdjax.engine.inspection import chunk_noise, ordered_kv
    from fdjax.engine.pipeline import (
        StreamInferencePipeline,
        StreamInferencePipelineConfig,
    )
    from fdjax.run.registry import runner_configs
    from fdjax.run.runner import Runner, RunnerConfig
    from fdjax.schedulers.table import ScheduleTable, schedule_table
    from fdjax.session.batch import SessionBatch
    from fdjax.session.futures import Futures, Habits
    from fdjax.session.handle import Session, SessionState
    from fdjax.session.store import load_cache, save_cache
    from fdjax.streaming.view import OrderedKV

# Resolved on first use, so that `import fdjax` stays light.
_EXPORTS = {
    "Component": "config",
    "Conditioner": "contract.conditioner",
    "ConditionerConfig": "contract.conditioner",
    "put_session": "engine.cache",
    "stack_caches": "engine.cache",
    "take_session": "engine.cache",
    "Conditions": "contract.conditioner",
    "DecoderConfig": "contract.decoder",
    "DiffusionModel": "engine.diffusion",
    "DiffusionModelConfig": "engine.diffusion",
    "EncoderConfig": "contract.encoder",
    "FinalState": "engine.diffusion",
    "ImageEncoder": "contract.conditioner",
    "InstantiateConfig": "config",
    "NullEncoder": "contract.encoder",
    "NullEncoderConfig": "contract.encoder",
    "OrderedKV": "streaming.view",
    "Runner": "run.runner",
    "RunnerConfig": "run.runner",
    "ScheduleTable": "schedulers.table",
    "Scheduler": "contract.scheduler",
    "SchedulerConfig": "contract.scheduler",
    "StreamInferencePipeline": "engine.pipeline",
    "StreamInferencePipelineCache": "engine.cache",
    "StreamInferencePipelineConfig": "engine.pipeline",
    "StreamingDecoder": "contract.decoder",
    "StreamingEncoder": "contract.encoder",
    "TextEncoder": "contract.conditioner",
    "TextImageConditioner": "engine.conditioner",
    "TextImageConditionerConfig": "engine.conditioner",
    "Transformer": "contract.transformer",
    "TransformerConfig": "contract.transformer",
    "chunk_noise": "engine.inspection",
    "derive_config": "config",
    "load_cache": "session.store",
    "ordered_kv": "engine.inspection",
    "save_cache": "session.store",
    "Session": "session.handle",
    "SessionBatch": "session.batch",
    "Futures": "session.futures",
    "Habits": "session.futures",
    "SessionState": "session.timeline",
    "runner_configs": "run.registry",
    "schedule_table": "schedulers.table",
}

__all__ = [
    "Component",
    "Conditioner",
    "ConditionerConfig",
    "Conditions",
    "DecoderConfig",
    "DiffusionModel",
    "DiffusionModelConfig",
    "EncoderConfig",
    "FinalState",
    "Futures",
    "Habits",
    "ImageEncoder",
    "InstantiateConfig",
    "NullEncoder",
    "NullEncoderConfig",
    "OrderedKV",
    "Runner",
    "RunnerConfig",
    "ScheduleTable",
    "Scheduler",
    "SchedulerConfig",
    "Session",
    "SessionBatch",
    "SessionState",
    "StreamInferencePipeline",
    "StreamInferencePipelineCache",
    "StreamInferencePipelineConfig",
    "StreamingDecoder",
    "StreamingEncoder",
    "TextEncoder",
    "TextImageConditioner",
    "TextImageConditionerConfig",
    "Transformer",
    "TransformerConfig",
    "chunk_noise",
    "derive_config",
    "load_cache",
    "ordered_kv",
    "put_session",
    "runner_configs",
    "save_cache",
    "schedule_table",
    "stack_caches",
    "take_session",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"fdjax.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'fdjax' has no attribute {name!r}")
