"""Learning rate schedules: each maps a step, from 1, to a factor of the optimizer's learning rate."""

from ml.training.schedules.phased import PhasedSchedule
from ml.training.schedules.schedule import Schedule
from ml.training.schedules.simple import ConstantSchedule, CosineSchedule, LinearSchedule, WarmupStableDecay

__all__ = [
    "ConstantSchedule",
    "CosineSchedule",
    "LinearSchedule",
    "PhasedSchedule",
    "Schedule",
    "WarmupStableDecay",
]
