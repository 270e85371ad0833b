"""Communication and shards of a rank in a real step, which plans are compared with."""

from typing import Any, NamedTuple

import torch
from quick_trainers import trainer_and_unused
from torch.profiler import ProfilerActivity, profile

from ml.distributed import Layout, MeshSizes, World
from ml.distributed.estimate.observing import Observed
from ml.distributed.estimate.traffic import Collective, Traffic, axes_of
from ml.distributed.shards import local
from ml.training import Trainer
from ml.training.estimate.tracing import batch_of
from ml.training.state import OPTIMIZER
from ml.training.step import train_step

_CPU = torch.device("cpu")


class Counted(NamedTuple):
    """Counts of a step of one rank.

    Attributes:
        payload: Bytes of the collectives.
        calls: Numbers of collectives.
        events: Name, shapes and dtypes of the operands of each operation of gloo that torch's profiler recorded.
        weights: Bytes of the local weights.
        optimizer: Bytes of the local optimizer state.
    """

    payload: dict[Collective, float]
    calls: dict[Collective, float]
    events: list[tuple[str, Any, Any]]
    weights: int
    optimizer: int


def trainer_of(bindings: str) -> Trainer:
    """Builds a tiny trainer."""
    trainer, _ = trainer_and_unused("recipes/tiny.gin", [bindings])
    return trainer


def counted(world: World, model: str, cases: dict[str, tuple[MeshSizes, str]]) -> dict[str, Counted]:
    """Returns the counts of this rank in its second step and the bytes of its shards, for each case.

    Args:
        world: The processes.
        model: Bindings of all cases.
        cases: The mesh and further bindings of each case.
    """
    found = {}
    for name, (sizes, bindings) in cases.items():
        trainer = trainer_of(model + bindings)
        layout = Layout.of(world, sizes)
        state = trainer.start(_CPU, layout)
        part = trainer.batch_size // sizes.num_data_ranks
        batches = [batch_of(trainer, layout)] * (part // min(part, trainer.micro_batch_size))
        targets = trainer.batch_size * trainer.sequence_length
        step = (state, batches, trainer.precision, trainer.max_grad_norm, _CPU, None, targets)
        train_step(*step)
        traffic = Traffic(axes_of(layout))
        with Observed(traffic):
            train_step(*step)
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
            train_step(*step)
        # `profiled.events()` arranges all operations as a tree, which takes most of the time of a tiny model.
        recorded = [one for one in profiled.profiler.kineto_results.events() if one.name().startswith("gloo:")]
        events = [(one.name(), one.shapes(), one.dtypes()) for one in recorded]
        weights = sum(local(parameter).nbytes for parameter in state.model.parameters())
        own = {id(tensor): tensor for key, tensor in state.tensors().items() if key.startswith(OPTIMIZER)}
        optimizer = sum(local(tensor).nbytes for tensor in own.values())
        found[name] = Counted(dict(traffic.payload), dict(traffic.calls), events, weights, optimizer)
    return found
