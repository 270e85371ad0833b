"""Size of the optimizer state, measured on the meta device."""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from ml.distributed.shards import local
from ml.training.errors import RunError
from ml.training.optimizers.groups import ParameterGroup
from ml.training.optimizers.optimizer import Optimizer


def state_bytes(optimizer: Optimizer, groups: list[ParameterGroup]) -> int:
    """Measures the bytes of the optimizer state of this process.

    Creates the optimizer for parameters of the same shapes on the meta device and takes a step there. For an algorithm
    that reads values on the host, which fails there, only the state allocated by `create` is counted.

    Args:
        optimizer: The settings of the optimizer.
        groups: The parameters, on any device.

    Returns:
        The bytes of all state tensors.

    Raises:
        RunError: The first step allocates state.
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
    """Requires that the first step allocated no state, because its checkpoint could not be resumed.

    Args:
        optimizer: The settings of the optimizer.
        added: Names of the state tensors that the step allocated.

    Raises:
        RunError: There are some.
    """
    if added:
        kind = type(optimizer).__name__
        names = ", ".join(sorted({name.rpartition("/")[2] for name in added}))
        raise RunError(
            f"{kind} allocates state in its first step ({names}), from which no checkpoint could be resumed: "
            f"return it from {kind}.initial_state"
        )


def _on_meta(parameter: nn.Parameter) -> nn.Parameter:
    """The part of this process, whose state is of the same size as that of a whole parameter of that shape."""
    return nn.Parameter(torch.empty_like(local(parameter.detach()), device="meta"))


def _tensors(algorithm: torch.optim.Optimizer) -> dict[tuple[int, str], Tensor]:
    """The state by parameter and key."""
    return {
        (id(parameter), key): value
        for parameter, state in algorithm.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def _num_bytes(tensors: dict[tuple[int, str], Tensor]) -> int:
    """Returns the bytes of all tensors; a shared tensor counts once."""
    return sum({id(tensor): tensor.nbytes for tensor in tensors.values()}.values())
