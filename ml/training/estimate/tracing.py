"""A step on fake tensors, observed: the code of a run, without its memory and its computation."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ml.data import Batch
from ml.distributed import Layout, parallelize
from ml.distributed.estimate.cluster import Cluster
from ml.distributed.estimate.live_memory import LiveMemory
from ml.distributed.estimate.observing import Observed
from ml.distributed.estimate.planned_stage import PlannedStage
from ml.distributed.estimate.traffic import Traffic, axes_of
from ml.distributed.estimate.work import Work as TimeOfOperations
from ml.distributed.shards import empty_like, local
from ml.layers.protocol import Drawn
from ml.models import LanguageModel
from ml.models.materialize import ParameterPlaces, reset_buffers
from ml.training.estimate.measurements import Memory, Work
from ml.training.guide import Guide
from ml.training.placeholders import PlaceholderGuide, placeholder_batch
from ml.training.state import AVERAGE, OPTIMIZER, TrainState
from ml.training.step import train_step
from ml.training.trainer import Trainer

_CPU = torch.device("cpu")


class Traced(NamedTuple):
    """Measurements of a step of one rank.

    Attributes:
        memory: Bytes by purpose.
        work: Operations and collectives.
        update: The part of the work that is not of a micro-batch: clipping and the optimizer.
        update_working: Bytes of intermediate results of the update, while there are no activations.
        stream_bytes: Bytes of a micro-batch between two stages of a pipeline.
        tied_bytes: Bytes of the gradient of a weight that the first and the last stage of a pipeline have.
    """

    memory: Memory
    work: Work
    update: Work = Work()
    update_working: float = 0.0
    stream_bytes: float = 0.0
    tied_bytes: float = 0.0


def trace(
    trainer: Trainer,
    model: LanguageModel,
    layout: Layout,
    num_micro_batches: int,
    cluster: Cluster,
    *,
    is_later: bool = False,
) -> Traced:
    """Takes a step of a model on fake tensors.

    Args:
        trainer: The settings of the run.
        model: A copy of its model on the meta device, in whole or with some of its blocks; changed.
        layout: The mesh, of one process or of a planned world; in a pipeline this rank has one stage.
        num_micro_batches: Micro-batches of the step.
        cluster: The rates of the devices.
        is_later: Whether there are gradients of micro-batches before, in the same step.
    """
    pipeline = parallelize(model, layout, trainer.mesh, compile=False)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with _quiet(), fake:
        allocate(model)
        state = trainer.start_with(model, layout, pipeline)
    assert state.replicas  # found once a run, before the step, from indices that are no fake tensors
    with _quiet(), fake:
        _warm_up(state)
        if is_later:
            _add_gradients(state)
        batches = [batch_of(trainer, layout) for _ in range(num_micro_batches)]
        return _observed_step(trainer, state, batches, cluster)


def _observed_step(trainer: Trainer, state: TrainState, batches: list[Batch], cluster: Cluster) -> Traced:
    for module in state.model.modules():
        if isinstance(module, Drawn):
            module.draw(torch.Generator().manual_seed(trainer.seed))
    state_tensors = [local(tensor) for tensor in state.tensors().values()]
    buffers = [local(buffer) for buffer in state.model.buffers()]
    inputs = [tensor for batch in batches for tensor in batch.inputs.values()]
    earlier = [local(weight.grad) for weight in state.trained().values() if weight.grad is not None]
    live = LiveMemory([*state_tensors, *buffers, *inputs, *earlier])
    stage = None if state.pipeline is None else PlannedStage(state.pipeline, live)
    state.pipeline = stage
    activations = _measured_forward(state.model, live) if stage is None else stage.activations
    guide = PlaceholderGuide.of(trainer)  # memory and time of the frozen model are not part of the plan
    time, traffic = TimeOfOperations(cluster), Traffic(axes_of(state.layout))
    with Observed(live, time, traffic):
        train_step(state, batches, trainer.precision, trainer.max_grad_norm, _CPU, guide)
    weights = _num_bytes(state.model.parameters())
    gradients = _num_bytes(parameter for parameter in state.model.parameters() if parameter.requires_grad)
    seen = 0 if earlier else gradients
    kept = seen + activations[0] if earlier or len(batches) > 1 else max(seen, activations[0])
    memory = Memory(weights, gradients, _num_bytes(_own(state)), activations[0], max(live.peak - kept, 0))
    work = Work(time.seconds, time.flops, traffic.payload, traffic.calls)
    if stage is not None:
        return Traced(memory, work, stream_bytes=stage.stream_bytes, tied_bytes=stage.tied_bytes)
    if not (earlier or trainer.compile):
        return Traced(memory, work)
    update, update_working = _update(trainer, state, cluster, guide)
    return Traced(memory, work, update if earlier else Work(), update_working)


def _update(trainer: Trainer, state: TrainState, cluster: Cluster, guide: Guide | None) -> tuple[Work, float]:
    """The work of clipping and the optimizer, and the bytes of their intermediate results."""
    _add_gradients(state)
    gradients = [local(weight.grad) for weight in state.trained().values() if weight.grad is not None]
    live = LiveMemory([*(local(tensor) for tensor in state.tensors().values()), *gradients])
    time, traffic = TimeOfOperations(cluster), Traffic(axes_of(state.layout))
    with Observed(live, time, traffic):
        train_step(state, [], trainer.precision, trainer.max_grad_norm, _CPU, guide)
    return Work(time.seconds, time.flops, traffic.payload, traffic.calls), live.peak


def _add_gradients(state: TrainState) -> None:
    for parameter in state.trained().values():
        parameter.grad = torch.zeros_like(parameter)


def _warm_up(state: TrainState) -> None:
    """Takes a step of the optimizer alone: DTensor finds shapes and placements in the first, with whole tensors."""
    _add_gradients(state)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)


def _measured_forward(model: Any, live: LiveMemory) -> list[int]:
    """Collects the bytes that each call of `model.loss` leaves alive."""
    found: list[int] = []
    loss = model.loss

    def measured(**inputs: Any) -> Any:
        before = live.activations()
        result = loss(**inputs)
        found.append(live.activations() - before)
        return result

    vars(model)["loss"] = measured
    return found


def allocate(model: nn.Module) -> None:
    """Allocates parameters and buffers on the device of the context; initial values do not matter."""
    places = ParameterPlaces(model)
    for parameter in list(model.parameters()):
        places.replace(parameter, nn.Parameter(empty_like(parameter, _CPU), parameter.requires_grad))
    reset_buffers(model, _CPU)


def batch_of(trainer: Trainer, layout: Layout) -> Batch:
    """Returns a full micro-batch of one rank; every position has a target."""
    num_sequences = min(trainer.micro_batch_size, trainer.batch_size // layout.num_data_ranks)
    return placeholder_batch(trainer, num_sequences, trainer.sequence_length)


def _own(state: TrainState) -> list[Tensor]:
    """Optimizer state and the average of the weights, each tensor once."""
    found = {id(tensor): tensor for name, tensor in state.tensors().items() if name.startswith((OPTIMIZER, AVERAGE))}
    return list(found.values())


def _num_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(local(tensor).nbytes for tensor in tensors)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences warnings of torch about collectives on fake tensors."""
    loggers = [logging.getLogger(name) for name in ("torch.distributed.tensor", "torch._subclasses.fake_tensor")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
