"""The estimate of an optimizer's state is what the optimizer allocates, shipped or not."""

import pytest
import torch
from torch import nn

from ml.training import RunError
from ml.training.optimizers import SGD, Adafactor, AdamW, Lion, Muon, Optimizer, ParameterGroup, state_bytes
from ml.training.optimizers.muon import MuonAlgorithm


class Custom(Optimizer):
    """Keeps three values a weight, one of them in float64, and a counter."""

    def __init__(self):
        super().__init__(learning_rate=0.1, weight_decay=0.0)

    def initial_state(self, parameter):
        wide = torch.zeros_like(parameter, dtype=torch.float64)
        return {"first": torch.zeros_like(parameter), "second": wide, "count": torch.zeros((), device=parameter.device)}

    def algorithm(self, settings):
        return CustomAlgorithm(settings, {})


class CustomAlgorithm(torch.optim.Optimizer):
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                self.state[weight]["second"].add_(weight.grad)
                weight.sub_(weight.grad, alpha=group["lr"])


class Shared(Custom):
    """Overrides `create`: what it declares for a parameter is not what it allocates, which is one buffer for all."""

    def create(self, groups):
        optimizer = CustomAlgorithm([self.settings(group) for group in groups], {})
        first = groups[0].parameters[0]
        buffer = torch.zeros(1000, dtype=torch.float32, device=first.device)
        for group in groups:
            for weight in group.parameters:
                optimizer.state[weight] = {"buffer": buffer, "second": torch.zeros_like(weight)}
        return optimizer


class OnTheHost(Custom):
    """Reads a value in its step, which no step on the meta device can."""

    def algorithm(self, settings):
        return HostAlgorithm(settings, {})


class HostAlgorithm(CustomAlgorithm):
    def step(self, closure=None):
        if self.param_groups[0]["params"][0].grad.sum().item() != 0.0:
            super().step()


class Late(Custom):
    """Torch's RMSprop, which allocates in its first step."""

    def create(self, groups):
        return torch.optim.RMSprop([self.settings(group) for group in groups])


def groups_of(dtype: torch.dtype) -> list[ParameterGroup]:
    shapes = {"a.weight": (6, 4), "b.weight": (6, 4), "c.weight": (3, 5), "d.bias": (7,), "head.weight": (9, 4)}
    parameters = {name: nn.Parameter(torch.ones(shape, dtype=dtype)) for name, shape in shapes.items()}
    matrices = [name for name, parameter in parameters.items() if parameter.ndim == 2]
    return [
        ParameterGroup(1.0, None, matrices, [parameters[name] for name in matrices]),
        ParameterGroup(0.5, 0.0, ["d.bias"], [parameters["d.bias"]]),
    ]


def allocated(optimizer: Optimizer, groups: list[ParameterGroup]) -> int:
    """Returns the bytes of storage of all tensors of the state, after two real steps."""
    algorithm = optimizer.create(groups)
    for _ in range(2):
        for group in groups:
            for parameter in group.parameters:
                parameter.grad = torch.ones_like(parameter)
        algorithm.step()
    storages = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
        for state in algorithm.state.values()
        for value in state.values()
    }
    return sum(storages.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [AdamW, SGD, Lion, Muon, Adafactor, Custom, Shared, OnTheHost])
def test_the_estimate_is_the_memory_that_is_then_allocated(kind, dtype):
    groups = groups_of(dtype)
    assert state_bytes(kind(), groups) == allocated(kind(), groups) > 0
    assert all(parameter.device.type == "cpu" for group in groups for parameter in group.parameters)


def test_state_that_comes_with_the_first_step_is_refused_by_name():
    message = r"Late allocates state in its first step \(.*square_avg.*\).*return it from Late\.initial_state"
    with pytest.raises(RunError, match=message):
        state_bytes(Late(), groups_of(torch.float32))


def test_a_fault_of_the_optimizer_is_not_taken_for_one_of_the_meta_device(monkeypatch):
    def broken(*_):
        raise TypeError("a fault")

    monkeypatch.setattr(MuonAlgorithm, "update", broken)
    with pytest.raises(TypeError, match="a fault"):
        state_bytes(Muon(), groups_of(torch.float32))
