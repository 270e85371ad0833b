"""One optimizer step."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ml.data import Batch
from ml.distributed.norms import clip_divisor, local_squares
from ml.training.gradient_graphs import divisor_on
from ml.training.guide import Guide
from ml.training.optimizers.controls import StepControls, take_step
from ml.training.optimizers.rollback import rolled_back_where
from ml.training.optimizers.rounding import StochasticRounding
from ml.training.precision import Precision
from ml.training.state import TrainState
from ml.training.step_sums import StepSums, SumNames, summed


class StepResult(NamedTuple):
    """Measurements of a step over all processes, on the device; reading them synchronizes."""

    loss: Tensor  # () cross entropy, nats per token; of preferences, their loss per pair
    grad_norm: Tensor  # () global norm, before clipping
    grad_norms: Tensor  # (P) norm of each gradient, before clipping, in the order of `TrainState.replicas.names`
    parts: dict[str, Tensor]  # () each: the other terms of the loss, per token or pair
    loads: dict[str, Tensor]  # (E) of each router, by its name: number of tokens of each expert


def train_step(
    state: TrainState,
    batches: Sequence[Batch],
    precision: Precision,
    max_grad_norm: float | None,
    device: torch.device,
    guide: Guide | None = None,
    num_targets: int | None = None,
    num_units: int | None = None,
) -> StepResult:
    """Takes an optimizer step on the mean loss over all valid tokens of all processes, without synchronizing.

    With preferences it is the mean over all pairs. Each micro-batch is weighted by its tokens or pairs, so neither the
    size of the micro-batches nor the number of processes changes the gradient.

    Args:
        state: The training state, changed in place.
        batches: The micro-batches of this process.
        precision: The precision of the forward pass.
        max_grad_norm: Clips the gradients to this global norm; None does not clip.
        device: The device of the model.
        guide: The teacher of distillation, or the reference of preferences; None without.
        num_targets: Number of valid tokens in the micro-batches of all processes; None counts those of `batches`.
        num_units: Number of tokens or pairs over which the loss is a mean, in those of all processes; None counts those
            of `batches`.

    Returns:
        The measurements of the step, on the device.
    """
    if num_targets is None:
        num_targets = sum(batch.num_targets for batch in batches)
    num_targets = max(1, num_targets)
    if num_units is None:
        num_units = num_targets if guide is None else sum(map(guide.num_units, batches))
    sums = accumulate(state, batches, max(1, num_units), precision, device, guide)
    trained = state.trained()
    gradients = {name: parameter.grad for name, parameter in trained.items()}
    if state.pipeline is not None and state.sum_names is None:
        state.sum_names = SumNames.of(sums).of_all(state.layout.world)
    names = state.sum_names or SumNames.of(sums)
    squares = local_squares(gradients, state.replicas).to(device, non_blocking=True)  # offloaded ones are on the CPU
    sums, squares = summed(state.layout, names, sums, squares)
    dtype = torch.promote_types(next(iter(trained.values())).dtype, torch.float32)
    grad_norms, grad_norm = squares.sqrt().to(dtype), squares.sum().sqrt().to(dtype)
    skipped = None if state.skip_step is None else state.skip_step.judge(sums.loss, grad_norm)
    rounding = None if state.rounding_seed is None else StochasticRounding(state.rounding_seed, state.step + 1)
    scale = None if max_grad_norm is None else clip_divisor(grad_norm, max_grad_norm)
    take_step(state.optimizer, StepControls(None if skipped is None else skipped.float(), rounding, scale))
    state.optimizer.zero_grad(set_to_none=True)
    for name, router in state.balanced.items():
        if name in sums.loads:
            with rolled_back_where(skipped, list(router.buffers())):
                router.balance(sums.loads[name])
    state.step += 1
    state.tokens += num_targets
    if state.weight_average is not None:
        state.weight_average.update(state.step, skipped)
    if skipped is None:
        _note_nonfinite(state, sums.loss, grad_norm)
    return StepResult(sums.loss, grad_norm, grad_norms, sums.parts, sums.loads)


def accumulate(
    state: TrainState,
    batches: Sequence[Batch],
    num_units: int,
    precision: Precision,
    device: torch.device,
    guide: Guide | None,
) -> StepSums:
    """Accumulates the gradients of the micro-batches of this process.

    Args:
        state: The training state, of which only gradients change.
        batches: The micro-batches.
        num_units: Number of valid tokens or pairs of all processes, by which the loss is divided.
        precision: The precision of the forward pass.
        device: The device of the model.
        guide: The teacher of distillation, or the reference of preferences; None without.

    Returns:
        What this process adds to the loss and the loads of the step.
    """
    sums = StepSums.zero(device)
    if state.pipeline is not None:
        inputs = [batch.to(device).inputs for batch in batches]
        for losses in state.pipeline.gradients(inputs, num_units, lambda: precision.autocast(device)):
            sums = sums.plus(StepSums.of(losses, num_units, state.module_names))
        return sums
    if state.graphs is not None:
        add = functools.partial(add_gradients, state, precision=precision, device=device)
        parameters = list(state.trained().values())
        for batch in batches:
            sums = sums.plus(state.graphs.add_gradients(add, batch, num_units, parameters))
        return sums
    divisor = divisor_on(device, num_units)
    for batch in batches:
        sums = sums.plus(add_gradients(state, batch.to(device), divisor, precision, device, guide))
    return sums


def add_gradients(
    state: TrainState,
    batch: Batch,
    num_units: Tensor,
    precision: Precision,
    device: torch.device,
    guide: Guide | None = None,
) -> StepSums:
    """Adds the gradients of a micro-batch on the device; see `accumulate`."""
    with precision.autocast(device):
        guided: dict[str, Any] = {} if guide is None else guide.inputs(batch, state.model)
        losses = state.model.loss(**batch.inputs, **guided)
    (losses.total / num_units).backward()
    return StepSums.of(losses, num_units, state.module_names)


def _note_nonfinite(state: TrainState, loss: Tensor, grad_norm: Tensor) -> None:
    fine = torch.isfinite(loss) & torch.isfinite(grad_norm)
    known = state.first_nonfinite_step > 0
    state.first_nonfinite_step = torch.where(fine | known, state.first_nonfinite_step, state.step)
