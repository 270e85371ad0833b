"""Inputs of an optimizer step besides the gradients."""

from typing import NamedTuple

import torch
from torch import Tensor

from ml.distributed.norms import divide_
from ml.training.optimizers.rounding import StochasticRounding


class StepControls(NamedTuple):
    """Inputs of an optimizer step besides the gradients.

    Attributes:
        found_inf: () float32; 1 skips the step. None never skips.
        rounding: Rounds weights stochastically; None rounds them to nearest.
        grad_scale: () divisor of the gradients, in the dtype of their norm; None leaves them as they are.
    """

    found_inf: Tensor | None = None
    rounding: StochasticRounding | None = None
    grad_scale: Tensor | None = None


class DividesGradients:
    """Mixin of an optimizer that divides gradients by its `grad_scale` while it reads them for the update.

    The gradients after the step are undefined.
    """

    grad_scale: Tensor | None = None


def take_step(optimizer: torch.optim.Optimizer, controls: StepControls) -> None:
    """Takes a step; divides the gradients before it if the optimizer does not.

    Args:
        optimizer: The optimizer, with gradients.
        controls: The other inputs. Tensors are copied to the device of the weights, which synchronizes if these are
            offloaded to the CPU: the fused kernels of torch copy them without.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    device = weights[0].device
    found_inf, scale = (None if one is None else one.to(device) for one in (controls.found_inf, controls.grad_scale))
    if scale is not None and not isinstance(optimizer, DividesGradients):
        divide_((weight.grad for weight in weights), scale)
        scale = None
    vars(optimizer).update(found_inf=found_inf, rounding=controls.rounding, grad_scale=scale)
    optimizer.step()
