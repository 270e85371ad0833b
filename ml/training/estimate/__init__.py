"""Plans of runs on machines that are not there: memory, communication and time of a step."""

from ml.training.estimate.candidates import Candidate, candidates
from ml.training.estimate.micro_batches import Fit, fits
from ml.training.estimate.planning import StepMemory, memory_of_step, plan
from ml.training.estimate.plans import Plan
from ml.training.estimate.report import (
    describe_candidates,
    describe_fits,
    describe_memory,
    describe_obstacles,
    describe_plan,
)

__all__ = [
    "Candidate",
    "Fit",
    "Plan",
    "StepMemory",
    "candidates",
    "describe_candidates",
    "describe_fits",
    "describe_memory",
    "describe_obstacles",
    "describe_plan",
    "fits",
    "memory_of_step",
    "plan",
]
