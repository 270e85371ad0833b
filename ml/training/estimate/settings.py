"""Trainers with other settings."""

import copy
from typing import Any

from ml.distributed.schedules import PipelineSchedule
from ml.training.trainer import Trainer


def changed(trainer: Trainer, **settings: Any) -> Trainer:
    """Returns a trainer with other settings; the trainer itself is frozen."""
    other = copy.copy(trainer)
    vars(other).update(settings)
    return other


def with_schedule(trainer: Trainer, schedule: PipelineSchedule) -> Trainer:
    """Returns a trainer whose mesh has a schedule, which a mesh without a pipeline does not."""
    mesh = copy.copy(trainer.mesh)
    vars(mesh)["_schedule"] = schedule
    return changed(trainer, mesh=mesh)
