"""The state that an optimizer keeps, as it allocates it."""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from ml.training.errors import RunError
from ml.training.optimizers.groups import ParameterGroup
from ml.training.optimizers.optimizer import Optimizer


def state_bytes(optimizer: Optimizer, groups: list[ParameterGroup]) -> int:
    """Bytes of all tensors that an optimizer keeps for its parameters, measured and not declared.

    The optimizer is created for parameters of the same shapes on the meta device and takes a step there. An algorithm
    that reads values on the host cannot do that; then only what `create` allocates is known and counted.

    Args:
        optimizer: The settings.
        groups: The parameters, wherever they are.

    Raises:
        RunError: The step allocates state that was not there before it.
    """
    groups = [group._replace(parameters=[_on_meta(one) for one in group.parameters]) for group in groups]
    algorithm = optimizer.create(groups)
    created = _tensors(algorithm)
    for group in groups:
        for parameter in group.parameters:
            parameter.grad = torch.empty_like(parameter)
    try:
        algorithm.step()
    except (RuntimeError, NotImplementedError):  # `Tensor.item()` and kernels that torch has for no meta tensor
        return _num_bytes(created)
    stepped = _tensors(algorithm)
    require_whole_state(optimizer, [key for _, key in stepped.keys() - created.keys()])
    return _num_bytes(stepped)


def require_whole_state(optimizer: Optimizer, added: Collection[str]) -> None:
    """Requires that no state was added by the first step, as a checkpoint of it could not be resumed.

    Args:
        optimizer: The settings.
        added: The names of what was not there before the step.

    Raises:
        RunError: There is some.
    """
    if added:
        kind = type(optimizer).__name__
        names = ", ".join(sorted({name.rpartition("/")[2] for name in added}))
        raise RunError(
            f"{kind} allocates state in its first step ({names}), from which no checkpoint could be resumed: "
            f"return it from {kind}.initial_state"
        )


def _on_meta(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(torch.empty_like(parameter, device="meta"))


def _tensors(algorithm: torch.optim.Optimizer) -> dict[tuple[int, str], Tensor]:
    """The state by parameter and key."""
    return {
        (id(parameter), key): value
        for parameter, state in algorithm.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def _num_bytes(tensors: dict[tuple[int, str], Tensor]) -> int:
    """Of all tensors; one that several parameters have in common counts once."""
    return sum({id(tensor): tensor.nbytes for tensor in tensors.values()}.values())
