"""What training changes."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ml.training.optimizers import ParameterGroup
from ml.training.optimizers.skip_step import SpikeGuard
from ml.training.optimizers.weight_average import WeightAverage

# How the names of saved tensors begin.
MODEL, OPTIMIZER, AVERAGE, SKIP = "model/", "optimizer/", "weight_average/", "skip_step/"


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
    unvalidated: dict[str, Any] | None = None  # the record of a step whose validation was broken off

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that the optimizer changes, by name."""
        return {
            name: parameter
            for group in self.groups
            for name, parameter in zip(group.names, group.parameters, strict=True)
        }

    def tensors(self) -> dict[str, Tensor]:
        """All of its tensors by name: "model/NAME", "optimizer/PARAMETER/KEY", "weight_average/NAME", ..."""
        parts = {AVERAGE: self.weight_average, SKIP: self.skip_step}
        return {
            **{MODEL + name: tensor for name, tensor in named_weights(self.model).items()},
            **{
                f"{OPTIMIZER}{name}/{key}": tensor
                for name, parameter in self.trained().items()
                for key, tensor in self.optimizer.state.get(parameter, {}).items()
            },
            **{
                prefix + name: tensor
                for prefix, part in parts.items()
                if part is not None
                for name, tensor in part.tensors().items()
            },
        }


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; of tied ones, the first name only."""
    tensors: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        tensors.setdefault(id(tensor), (name, tensor.detach()))
    return dict(tensors.values())
