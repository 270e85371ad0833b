"""What training changes."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ml.training.optimizers import ParameterGroup
from ml.training.skip_step import SpikeGuard
from ml.training.weight_average import WeightAverage


@dataclass
class TrainState:
    """Everything that one step hands to the next; with the data, the seed and the step number it is the whole run.

    Dropout and the order of the data are functions of (seed, step) and need no state.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    groups: list[ParameterGroup]
    first_nonfinite_step: Tensor  # () int64 on the device, 0 for none: read only where the host waits anyway
    skip_step: SpikeGuard | None = None
    weight_average: WeightAverage | None = None
    step: int = 0
    tokens: int = 0  # targets that counted, so far
    seconds: float = 0.0  # spent so far, in this process and the ones before it

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that the optimizer changes, by name."""
        return {
            name: parameter
            for group in self.groups
            for name, parameter in zip(group.names, group.parameters, strict=True)
        }


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; of tied ones, the first name only."""
    tensors: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        tensors.setdefault(id(tensor), (name, tensor.detach()))
    return dict(tensors.values())
