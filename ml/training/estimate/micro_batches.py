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
from ml.training.estimate.planning import plan
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


def fits(trainer: Trainer, sizes: MeshSizes, cluster: Cluster, device_memory: int) -> list[Fit]:
    """Finds the largest micro-batch that divides the batch of a data rank, for each policy.

    Args:
        trainer: The settings of the run.
        sizes: The mesh.
        cluster: The machines.
        device_memory: Bytes of a device.
    """
    part = trainer.batch_size // sizes.num_data_ranks
    divisors = [size for size in range(1, part + 1) if part % size == 0]
    found = []
    for name, policy in _POLICIES.items():
        with_policy = _with_policy(trainer, policy)

        def planned(size: int, trainer: Trainer = with_policy) -> Plan:
            return plan(changed(trainer, micro_batch_size=size), sizes, cluster)

        found.append(Fit(name, _largest(divisors, planned, device_memory)))
    return found


def _largest(sizes: list[int], planned: Callable[[int], Plan], device_memory: int) -> Plan | None:
    """The plan of the largest size that fits, by bisection: a larger micro-batch needs more memory."""
    best, low, high = None, 0, len(sizes)
    while low < high:
        middle = (low + high) // 2
        tried = planned(sizes[middle])
        if tried.total_memory <= device_memory:
            best, low = tried, middle + 1
        else:
            high = middle
    return best


def _with_policy(trainer: Trainer, policy: Callable[..., Callable[..., Tensor]] | None) -> Trainer:
    model = copy.deepcopy(trainer.model)
    for module in model.modules():
        if isinstance(module, DecoderBlock):
            module.activation_checkpointing = None if policy is None else policy()
    return changed(trainer, model=model)
