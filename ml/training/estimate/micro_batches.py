"""The largest micro-batch that fits into the memory of a device, with each policy of activation checkpointing."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from ml.blocks.activation_checkpointing import ActivationCheckpointing, SelectiveActivationCheckpointing
from ml.blocks.decoder_block import DecoderBlock
from ml.distributed import MeshSizes
from ml.distributed.estimate.cluster import Cluster
from ml.training.estimate.planning import plan
from ml.training.estimate.plans import Plan
from ml.training.estimate.settings import changed
from ml.training.trainer import Trainer

_POLICIES: dict[str, Callable[..., Callable[..., Tensor]] | None] = {
    "None": None,
    "@SelectiveActivationCheckpointing": SelectiveActivationCheckpointing,
    "@ActivationCheckpointing": ActivationCheckpointing,
}
_MARGIN = 1.01  # a size is traced where the line through smaller ones comes as close as this to the memory


class Fit(NamedTuple):
    """The largest micro-batch with a policy of activation checkpointing.

    Attributes:
        policy: The value of `DecoderBlock.activation_checkpointing`.
        plan: The plan with the largest micro-batch; None where none fits.
    """

    policy: str
    plan: Plan | None


def fits(trainer: Trainer, cluster: Cluster, device_memory: int, own: Plan | None = None) -> list[Fit]:
    """Finds the largest micro-batch of a single process that divides its batch, for each policy.

    Args:
        trainer: The settings of the run.
        cluster: The machine.
        device_memory: Bytes of a device.
        own: The plan of the settings as they are; None makes it again where it is needed.
    """
    divisors = [size for size in range(1, trainer.batch_size + 1) if trainer.batch_size % size == 0]
    found = []
    for name, policy in _POLICIES.items():
        with_policy = _with_policy(trainer, policy)

        known = own if _has_policy(trainer, policy) else None

        def planned(size: int, trainer: Trainer = with_policy, known: Plan | None = known) -> Plan:
            if known is not None and known.micro_batch_size == size:
                return known
            return plan(changed(trainer, micro_batch_size=size), MeshSizes(), cluster)

        found.append(Fit(name, _largest(divisors, trainer.micro_batch_size, planned, device_memory)))
    return found


def _largest(sizes: list[int], start: int, planned: Callable[[int], Plan], limit: int) -> Plan | None:
    """The plan of the largest size that fits.

    The last size is the whole batch: a step of one micro-batch does not keep gradients and activations at once, and can
    need less memory than one of two. So it is planned unless it certainly does not fit.

    Args:
        sizes: All sizes, in order.
        start: The size to plan first.
        planned: Plans a step.
        limit: Bytes of a device.
    """
    *smaller, whole = sizes
    plans: dict[int, Plan] = {}
    if start == whole:
        plans[whole] = planned(whole)
        if plans[whole].total_memory <= limit:
            return plans[whole]
        start = smaller[-1] if smaller else whole
    best = _largest_of_several(smaller, start, planned, limit, plans) if smaller else None
    if whole not in plans and not _exceeds(plans, whole, limit):
        plans[whole] = planned(whole)
    fitting = [plan for plan in (plans.get(whole), best) if plan is not None and plan.total_memory <= limit]
    return fitting[0] if fitting else None


def _largest_of_several(
    sizes: list[int], start: int, planned: Callable[[int], Plan], limit: int, plans: dict[int, Plan]
) -> Plan | None:
    """The plan of the largest size that fits, of steps of several micro-batches; a larger one needs more memory.

    A plan takes seconds, so the next size to plan is read from the line through the two largest that are planned. The
    memory of a step is the maximum over its moments, each linear in the size, so it is convex: beyond the two sizes it
    lies on the line or above, and so do sizes before two others. A size of which such a line exceeds the limit is not
    planned, once three sizes are convex; where they are not, all sizes are searched by bisection.
    """
    points: dict[int, float] = {}
    low, high = 0, len(sizes)  # the first `low` sizes fit, those from `high` on do not
    index = sizes.index(start)
    while low < high:
        size = sizes[index]
        plans[size] = planned(size)
        points[size] = plans[size].total_memory
        if points[size] <= limit:
            low = index + 1
        else:
            high = index
        if not _is_convex(points):
            index = (low + high) // 2
            continue
        while max(low, 1) < high and _certainly_exceeds(points, sizes[high - 1], limit):
            high -= 1
        line = {0: _constant(plans[size]), **points}
        index = max((one for one in range(low, high) if _on_line(line, sizes[one]) <= limit), default=low)
    return plans[sizes[low - 1]] if low else None


def _constant(plan: Plan) -> float:
    """Bytes that do not depend on the micro-batch."""
    return plan.memory._replace(activations=0.0, working=0.0).peak(accumulates=True)


def _exceeds(plans: Mapping[int, Plan], whole: int, limit: int) -> bool:
    """True where the whole batch certainly does not fit, by the line through the two largest sizes that are planned."""
    if not plans:
        return False
    plan = next(iter(plans.values()))
    points = {0: _constant(plan), **{size: plan.total_memory for size, plan in plans.items()}}
    return len(plans) > 1 and _on_line(points, whole) - plan.memory.gradients > _MARGIN * limit


def _certainly_exceeds(points: Mapping[int, float], size: int, limit: int) -> bool:
    """True where a line of which a convex function is no lower bound only between its two points exceeds the limit."""
    smaller = sorted(one for one in points if one < size)[-2:]
    larger = sorted(one for one in points if one > size)[:2]
    lines = [{one: points[one] for one in pair} for pair in (smaller, larger) if len(pair) == 2]
    return len(points) > 2 and any(_on_line(line, size) > _MARGIN * limit for line in lines)


def _on_line(points: Mapping[int, float], size: int) -> float:
    """The value at `size` of the line through the two points with the largest sizes."""
    (first, one), (second, other) = sorted(points.items())[-2:]
    return one + (other - one) * (size - first) / (second - first)


def _is_convex(points: Mapping[int, float]) -> bool:
    """True where the slopes between points in order do not decrease, but for rounding."""
    slopes = [(b - a) / (second - first) for (first, a), (second, b) in itertools.pairwise(sorted(points.items()))]
    return all(after >= before / _MARGIN for before, after in itertools.pairwise(slopes))


def _has_policy(trainer: Trainer, policy: Callable[..., Callable[..., Tensor]] | None) -> bool:
    """True where all blocks have the policy with its default settings, as far as these can be compared."""
    blocks = (module for module in trainer.model.modules() if isinstance(module, DecoderBlock))
    found = [block.activation_checkpointing for block in blocks]
    wanted = None if policy is None else policy()
    return all(one is wanted or (type(one) is type(wanted) and vars(one) == vars(wanted)) for one in found)


def _with_policy(trainer: Trainer, policy: Callable[..., Callable[..., Tensor]] | None) -> Trainer:
    model = copy.deepcopy(trainer.model)
    for module in model.modules():
        if isinstance(module, DecoderBlock):
            module.activation_checkpointing = None if policy is None else policy()
    return changed(trainer, model=model)
