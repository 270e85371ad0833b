"""The orders in which the ranks of a pipeline compute, and what follows from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ml.distributed.estimate.planned_world import planned_world
from ml.distributed.schedules import PipelineSchedule, ZeroBubbleV

Order = list[tuple[int, str]]
_FORWARD, _ENDS_OF_BACKWARD = "FORWARD", ("FULL_BACKWARD", "BACKWARD_WEIGHT")
_COMPUTES = (_FORWARD, "BACKWARD_INPUT", *_ENDS_OF_BACKWARD)


def orders_of(schedule: PipelineSchedule, num_ranks: int, num_micro_batches: int) -> list[Order]:
    """Returns the operations of each rank in a step in torch's order: the stage and torch's name of each.

    Args:
        schedule: The schedule.
        num_ranks: `Mesh.pipeline`, at least 2.
        num_micro_batches: Number of micro-batches of a step.
    """
    from torch.distributed.pipelining import PipelineStage

    num_stages = schedule.num_stages(num_ranks)
    tensor = torch.empty(1, device="meta", requires_grad=True)
    with planned_world(num_ranks):
        stages = [
            PipelineStage(nn.Identity(), index, num_stages, torch.device("cpu"), input_args=tensor, output_args=tensor)
            for index in schedule.stages_of(0, num_ranks)
        ]
        order = schedule.start(stages, num_micro_batches).pipeline_order
    return [_order(order[rank]) for rank in range(num_ranks)]


def peak_in_flight(order: Iterable[tuple[int, str]], activations: Mapping[int, float]) -> float:
    """Returns the largest sum of activations that a rank keeps, from a forward pass to the end of its backward pass.

    Args:
        order: The operations of the rank.
        activations: Bytes of a micro-batch in each of its stages.
    """
    kept: Counter[int] = Counter()
    peak = 0.0
    for stage, operation in order:
        if operation == _FORWARD:
            kept[stage] += 1
            peak = max(peak, sum(activations[index] * number for index, number in kept.items()))
        elif operation in _ENDS_OF_BACKWARD:
            kept[stage] -= 1
    return peak


def bubble(schedule: PipelineSchedule, num_ranks: int) -> float:
    """Returns the time that a rank waits in a step, in times of a micro-batch on all stages of a rank.

    (p - 1) / v with v stages a rank (Narayanan et al. 2021, section 2.2); a third of it where gradients of weights are
    computed at other times, if forward pass and both gradients take the same time (Qi et al. 2023, ZB-H1); none for
    `ZeroBubbleV` (ZB-V).

    Args:
        schedule: The schedule.
        num_ranks: `Mesh.pipeline`.
    """
    if isinstance(schedule, ZeroBubbleV):
        return 0.0
    whole = (num_ranks - 1) / schedule.stages_per_rank
    return whole / 3 if schedule.splits_backward else whole


def _order(actions: Iterable[Any]) -> Order:
    return [
        (one.stage_index, one.computation_type.name)
        for one in actions
        if one is not None and one.computation_type.name in _COMPUTES
    ]
