"""The largest micro-batch that fits into the memory of a device, with each policy of activation checkpointing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ml.blocks.activation_checkpointing import ActivationCheckpointing, SelectiveActivationCheckpointing
from ml.blocks.decoder_block import DecoderBlock
from ml.distributed import MeshSizes
from ml.distributed.estimate.cluster import Cluster
from ml.training.estimate.planning import memory_on, plan
from ml.training.estimate.plans import Plan
from ml.training.estimate.settings import changed
from ml.training.trainer import Trainer

_POLICIES: dict[str, Callable[..., Callable[..., Tensor]] | None] = {
    "None": None,
    "@SelectiveActivationCheckpointing": SelectiveActivationCheckpointing,
    "@ActivationCheckpointing": ActivationCheckpointing,
}


class Fit(NamedTuple):
    """The largest micro-batch with a policy of activation checkpointing.

    Attributes:
        policy: The value of `DecoderBlock.activation_checkpointing`.
        plan: The plan with the largest micro-batch; None where none fits.
    """

    policy: str
    plan: Plan | None


def fits(trainer: Trainer, cluster: Cluster, device_memory: int) -> list[Fit]:
    """Finds the largest micro-batch of a single process that divides its batch, for each policy.

    Args:
        trainer: The settings of the run.
        cluster: The machine.
        device_memory: Bytes of a device.
    """
    divisors = [size for size in range(1, trainer.batch_size + 1) if trainer.batch_size % size == 0]
    found = []
    for name, policy in _POLICIES.items():
        with_policy = _with_policy(trainer, policy)

        def of_size(size: int, trainer: Trainer = with_policy) -> Trainer:
            return changed(trainer, micro_batch_size=size)

        best = _largest(divisors, lambda size: memory_on(of_size(size), cluster).peak <= device_memory)
        found.append(Fit(name, None if best is None else plan(of_size(best), MeshSizes(), cluster)))
    return found


def _largest(sizes: list[int], is_fitting: Callable[[int], bool]) -> int | None:
    """The largest size that fits, by bisection: a larger micro-batch needs more memory."""
    low, high = 0, len(sizes)
    while low < high:
        middle = (low + high) // 2
        if is_fitting(sizes[middle]):
            low = middle + 1
        else:
            high = middle
    return sizes[low - 1] if low else None


def _with_policy(trainer: Trainer, policy: Callable[..., Callable[..., Tensor]] | None) -> Trainer:
    model = copy.deepcopy(trainer.model)
    for module in model.modules():
        if isinstance(module, DecoderBlock):
            module.activation_checkpointing = None if policy is None else policy()
    return changed(trainer, model=model)
