"""Measurements of a whole step from those of a few blocks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from ml.distributed.estimate.cluster import Cluster
from ml.distributed.estimate.kinds import keep_blocks
from ml.models import LanguageModel
from ml.training.estimate.devices import as_on_gpu
from ml.training.estimate.measurements import combined_memory, combined_work
from ml.training.estimate.tracing import Traced
from ml.training.trainer import Trainer


def extrapolated(
    kinds: Sequence[Sequence[str]], measured: Callable[[list[str]], Traced], *, gathers_all: bool = False
) -> Traced:
    """Returns the measurements with all blocks from those with one block of each kind, and a second one in turn.

    Args:
        kinds: Paths of the blocks, those in one list alike.
        measured: Measures a step with some of the blocks.
        gathers_all: Whether the weights and gradients of all blocks are whole at the same time.
    """
    one_of_each = [kind[-1] for kind in kinds]
    base = measured(one_of_each)
    memory, work = [(1.0, base.memory)], [(1.0, base.work)]
    working, update_working = base.memory.working, base.update_working
    for kind in kinds:
        if (others := len(kind) - 1) > 0:
            more = measured([*one_of_each, kind[0]])
            memory += [(others, more.memory), (-others, base.memory)]
            work += [(others, more.work), (-others, base.work)]
            # Two blocks are gathered or computed again at a time, never more.
            working = max(working, more.memory.working)
            update_working = max(update_working, more.update_working)
    whole = combined_memory(memory)
    working = max(working, whole.working) if gathers_all else working
    memory_at_peak = whole._replace(working=working)
    return base._replace(memory=memory_at_peak, work=combined_work(work), update_working=update_working)


def with_blocks(trainer: Trainer, paths: Sequence[str], cluster: Cluster) -> LanguageModel:
    """Returns a copy of the model with the blocks `paths` alone, whose layers take their way on the devices."""
    model = copy.deepcopy(trainer.model)
    keep_blocks(model, paths)
    if cluster.is_gpu:
        as_on_gpu(model, trainer.precision.compute_dtype)
    return model
