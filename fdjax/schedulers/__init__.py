"""Denoising solvers as steps: tables of records, and what one step does."""

from fdjax.contract.scheduler import Scheduler, SchedulerConfig
from fdjax.schedulers.euler import EulerScheduler, EulerSchedulerConfig
from fdjax.schedulers.flow_match import FlowMatchScheduler, FlowMatchSchedulerConfig
from fdjax.schedulers.unipc import UniPCScheduler, UniPCSchedulerConfig

__all__ = [
    "EulerScheduler",
    "EulerSchedulerConfig",
    "FlowMatchScheduler",
    "FlowMatchSchedulerConfig",
    "Scheduler",
    "SchedulerConfig",
    "UniPCScheduler",
    "UniPCSchedulerConfig",
]
