"""Denoising solvers, each one `lax.scan` over precomputed step records."""

from fdjax.contract.scheduler import PredictFlow, Scheduler, SchedulerConfig
from fdjax.schedulers.euler import EulerScheduler, EulerSchedulerConfig
from fdjax.schedulers.flow_match import FlowMatchScheduler, FlowMatchSchedulerConfig
from fdjax.schedulers.unipc import UniPCScheduler, UniPCSchedulerConfig

__all__ = [
    "EulerScheduler",
    "EulerSchedulerConfig",
    "FlowMatchScheduler",
    "FlowMatchSchedulerConfig",
    "PredictFlow",
    "Scheduler",
    "SchedulerConfig",
    "UniPCScheduler",
    "UniPCSchedulerConfig",
]
