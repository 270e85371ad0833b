"""One optimizer step."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ml.data import Batch
from ml.training.precision import Precision
from ml.training.state import TrainState


class StepResult(NamedTuple):
    """What was measured, on the device: reading it waits for the step."""

    loss: Tensor  # () cross entropy, nats per token
    grad_norm: Tensor  # () of all gradients together, before clipping


def train_step(
    state: TrainState,
    batches: Sequence[Batch],
    precision: Precision,
    max_grad_norm: float | None,
    device: torch.device,
) -> StepResult:
    """Takes one step on the mean loss over all valid tokens of `batches`; the host waits for nothing.

    Each micro-batch counts by its valid tokens, so how the sequences are cut in micro-batches does not change the
    gradient.
    """
    num_targets = max(1, sum(batch.num_targets for batch in batches))
    loss = torch.zeros((), device=device)
    for batch in batches:
        batch = batch.to(device)
        with precision.autocast(device):
            losses = state.model.loss(batch.tokens, batch.targets)
        (losses.total / num_targets).backward()
        loss += losses.cross_entropy / num_targets
    grad_norm = _clip(state, max_grad_norm)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    state.tokens += num_targets
    _note_nonfinite(state, loss, grad_norm)
    return StepResult(loss, grad_norm)


def _clip(state: TrainState, max_grad_norm: float | None) -> Tensor:
    parameters = [parameter for group in state.groups for parameter in group.parameters]
    if max_grad_norm is None:
        return nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    return nn.utils.clip_grad_norm_(parameters, max_grad_norm)


def _note_nonfinite(state: TrainState, loss: Tensor, grad_norm: Tensor) -> None:
    fine = torch.isfinite(loss) & torch.isfinite(grad_norm)
    known = state.first_nonfinite_step > 0
    state.first_nonfinite_step = torch.where(fine | known, state.first_nonfinite_step, state.step)
