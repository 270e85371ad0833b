"""The state of training."""

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ml.distributed import Layout
from ml.distributed.norms import Replicas, replicas
from ml.layers import Balanced
from ml.models import LanguageModel
from ml.training.evaluation.lowest import Lowest
from ml.training.gradient_graphs import GradientGraphs
from ml.training.optimizers import ParameterGroup
from ml.training.optimizers.skip_step import SpikeGuard
from ml.training.optimizers.weight_average import WeightAverage
from ml.training.step_sums import SumNames

if TYPE_CHECKING:
    from ml.distributed.pipeline.pipeline import Pipeline

# Prefixes of the names of saved tensors.
MODEL, OPTIMIZER, AVERAGE, SKIP = "model/", "optimizer/", "weight_average/", "skip_step/"
# The uses of the lowest values of validation metrics.
BEST_VALIDATION, EARLY_STOPPING = "best_validation", "early_stopping"


@dataclass
class TrainState:
    """Everything that a step passes to the next one.

    With the data, the seed and the step number it determines the rest of the run: dropout and the order of the data are
    functions of (seed, step) and need no state.

    Attributes:
        model: The model.
        optimizer: The torch optimizer.
        groups: The trained parameters, in groups.
        first_nonfinite_step: () int64 on the device, 0 for none; read only where the host synchronizes anyway.
        skip_step: The guard that skips steps, or None.
        weight_average: The running average of the weights, or None.
        layout: The mesh and the place of this process in it.
        pipeline: Computes gradients and losses over the stages of a pipeline; None where there is none.
        step: Number of steps taken.
        tokens: Number of targets in the loss so far.
        sequences: Number of training sequences consumed so far, the position in the data.
        seconds: Duration of the run so far, over all of its processes.
        graphs: Computes gradients by CUDA graphs; None without.
        rounding_seed: Seed of the stochastic rounding of weights; None rounds to nearest.
        sum_names: Names of what the stages of a pipeline measure, after the first step.
        unvalidated: The record of a step whose validation was interrupted, or None.
        lowest: The lowest values of the validation metrics that decide on checkpoints and on the end of the run.
    """

    model: LanguageModel
    optimizer: torch.optim.Optimizer
    groups: list[ParameterGroup]
    first_nonfinite_step: Tensor
    skip_step: SpikeGuard | None = None
    weight_average: WeightAverage | None = None
    layout: Layout = field(default_factory=Layout)
    pipeline: "Pipeline | None" = None
    graphs: GradientGraphs | None = None
    step: int = 0
    tokens: int = 0
    sequences: int = 0
    seconds: float = 0.0
    rounding_seed: int | None = None
    unvalidated: dict[str, Any] | None = None
    sum_names: SumNames | None = None
    lowest: dict[str, Lowest] = field(default_factory=dict)

    @property
    def is_best(self) -> bool:
        """True if the validation of the current step is the best one so far."""
        best = self.lowest.get(BEST_VALIDATION)
        return best is not None and best.step == self.step > 0

    def trained(self) -> dict[str, nn.Parameter]:
        """Returns the trained parameters by name."""
        return {
            name: parameter
            for group in self.groups
            for name, parameter in zip(group.names, group.parameters, strict=True)
        }

    @functools.cached_property
    def replicas(self) -> Replicas:
        """The replicas of the trained parameters over all processes; the first use is a collective call."""
        return replicas(self.trained(), self.layout.world)

    @functools.cached_property
    def module_names(self) -> dict[nn.Module, str]:
        """The name of each module of the model."""
        return {module: name for name, module in self.model.named_modules()}

    @functools.cached_property
    def balanced(self) -> dict[str, Balanced]:
        """The routers of the model that are changed by the load of their experts, by name."""
        return {name: module for module, name in self.module_names.items() if isinstance(module, Balanced)}

    def tensors(self) -> dict[str, Tensor]:
        """Returns all tensors by name: "model/NAME", "optimizer/PARAMETER/KEY", "weight_average/NAME", ..."""
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
    """Returns parameters and persistent buffers by name; tied weights appear under their first name only."""
    tensors: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        tensors.setdefault(id(tensor), (name, tensor.detach()))
    return dict(tensors.values())
