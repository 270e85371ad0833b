"""Several optimizers of separate parameters, combined into one."""

from typing import Any

import torch
from torch import Tensor

from ml.training.optimizers.controls import DividesGradients, StepControls, take_step
from ml.training.optimizers.rounding import StochasticRounding


class CombinedOptimizer(DividesGradients, torch.optim.Optimizer):
    """An optimizer that shares the groups and the state of all `parts`; a step is a step of each."""

    found_inf: Tensor | None = None
    rounding: StochasticRounding | None = None

    def __init__(self, parts: list[torch.optim.Optimizer]):
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        for part in parts:
            self.state.update(part.state)
        self._share()

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # the parts have no common loss
        """Takes a step of each part."""
        controls = StepControls(self.found_inf, self.rounding, self.grad_scale)
        for part in self.parts:
            take_step(part, controls)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part in self.parts:
            part.state = self.state
            part.param_groups = [next(groups) for _ in part.param_groups]
