"""One optimizer step."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ml.data import Batch
from ml.layers import Balanced
from ml.training.distillation import TeacherModel
from ml.training.metrics.gradient_norm import gradient_norms
from ml.training.optimizers.rollback import rolled_back_where
from ml.training.precision import Precision
from ml.training.state import TrainState


class StepResult(NamedTuple):
    """Measurements of a step, on the device; reading them synchronizes."""

    loss: Tensor  # () cross entropy, nats per token
    grad_norm: Tensor  # () global norm, before clipping
    grad_norms: Tensor  # (P) norm of each gradient, before clipping, in the order of `TrainState.trained()`
    parts: dict[str, Tensor]  # () each: the other terms of the loss, per token
    loads: dict[nn.Module, Tensor]  # (E) of each router: number of tokens of each expert


def train_step(
    state: TrainState,
    batches: Sequence[Batch],
    precision: Precision,
    max_grad_norm: float | None,
    device: torch.device,
    teacher: TeacherModel | None = None,
) -> StepResult:
    """Takes an optimizer step on the mean loss over all valid tokens of `batches`, without synchronizing.

    Each micro-batch is weighted by its valid tokens, so the size of the micro-batches does not change the gradient.

    Args:
        state: The training state, changed in place.
        batches: The micro-batches of the step.
        precision: The precision of the forward pass.
        max_grad_norm: Clips the gradients to this global norm; None does not clip.
        device: The device of the model.
        teacher: The teacher of distillation; None without distillation.

    Returns:
        The measurements of the step, on the device.
    """
    num_targets = max(1, sum(batch.num_targets for batch in batches))
    loss = torch.zeros((), device=device)
    parts: dict[str, Tensor] = {}
    loads: dict[nn.Module, Tensor] = {}
    for batch in batches:
        batch = batch.to(device)
        with precision.autocast(device):
            taught: dict[str, Any] = {} if teacher is None else {"teacher": teacher(batch)}
            losses = state.model.loss(**batch.inputs, **taught)
        (losses.total / num_targets).backward()
        loss += losses.cross_entropy / num_targets
        for name, part in losses.parts.items():
            parts[name] = parts.get(name, 0.0) + part / num_targets
        for router, load in losses.loads:
            loads[router] = loads.get(router, 0.0) + load
    trained = list(state.trained().values())
    grad_norms = gradient_norms(trained)
    grad_norm = torch.linalg.vector_norm(grad_norms)
    if max_grad_norm is not None:
        nn.utils.clip_grads_with_norm_(trained, max_grad_norm, grad_norm)
    skipped = None if state.skip_step is None else state.skip_step.judge(loss, grad_norm)
    vars(state.optimizer)["found_inf"] = None if skipped is None else skipped.float()
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    for router, load in loads.items():
        if isinstance(router, Balanced):
            with rolled_back_where(skipped, list(router.buffers())):
                router.balance(load)
    state.step += 1
    state.tokens += num_targets
    if state.weight_average is not None:
        state.weight_average.update(state.step, skipped)
    if skipped is None:
        _note_nonfinite(state, loss, grad_norm)
    return StepResult(loss, grad_norm, grad_norms, parts, loads)


def _note_nonfinite(state: TrainState, loss: Tensor, grad_norm: Tensor) -> None:
    fine = torch.isfinite(loss) & torch.isfinite(grad_norm)
    known = state.first_nonfinite_step > 0
    state.first_nonfinite_step = torch.where(fine | known, state.first_nonfinite_step, state.step)
