"""Pipeline parallelism: the blocks of a model divided over ranks, with torch's schedules."""

from ml.distributed.pipeline.cut import cut, misfit_of_stages
from ml.distributed.pipeline.elsewhere import Elsewhere
from ml.distributed.pipeline.pipeline import Pipeline
from ml.distributed.pipeline.schedules import (
    GPipe,
    InterleavedOneForwardOneBackward,
    InterleavedZeroBubble,
    OneForwardOneBackward,
    PipelineSchedule,
    ZeroBubbleV,
)
from ml.distributed.pipeline.stage import Stage

__all__ = [
    "Elsewhere",
    "GPipe",
    "InterleavedOneForwardOneBackward",
    "InterleavedZeroBubble",
    "OneForwardOneBackward",
    "Pipeline",
    "PipelineSchedule",
    "Stage",
    "ZeroBubbleV",
    "cut",
    "misfit_of_stages",
]
