"""Division of gradients within the step of an optimizer."""

import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ml.training import SGD, Adafactor, AdamW, Lion, Muon
from ml.training.optimizers import Blockwise8BitState, Optimizer, ParameterGroup
from ml.training.optimizers.controls import StepControls, take_step

FLOAT, DOUBLE, NARROW = torch.float32, torch.float64, torch.bfloat16
SCALE = 4.0  # a power of 2: the division is exact


class Plain(Optimizer):
    """An optimizer of torch, which knows nothing of the division."""

    def __init__(self, learning_rate=0.1):
        super().__init__(learning_rate, 0.0)

    def initial_state(self, parameter):
        return {}

    def algorithm(self, settings):
        return torch.optim.SGD(settings)


CASES = {
    "AdamW": (AdamW(0.1), FLOAT),
    "AdamW in float64": (AdamW(0.1), DOUBLE),
    "AdamW in bfloat16": (AdamW(0.1), NARROW),
    "AdamW in 8 bits": (AdamW(0.1, state_format=lambda: Blockwise8BitState(8)), FLOAT),
    "SGD": (SGD(0.1), FLOAT),
    "Lion": (Lion(0.1), FLOAT),
    "Adafactor": (Adafactor(0.1), FLOAT),
    "Muon and AdamW": (Muon(0.1), FLOAT),
    "Muon and torch's": (Muon(0.1, others=Plain), FLOAT),
    "torch's": (Plain(), FLOAT),
}


class Written(TorchDispatchMode):
    """Names of the operations that change the given tensors."""

    def __init__(self, tensors):
        super().__init__()
        self.ids, self.names = {id(tensor) for tensor in tensors}, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        written = [
            value for argument, value in zip(function._schema.arguments, args, strict=False) if argument.is_write
        ]
        flat = [one for value in written for one in (value if isinstance(value, list) else [value])]
        if self.ids & {id(one) for one in flat}:
            self.names.append(function._schema.name)
        return function(*args, **(kwargs or {}))


def created(settings, dtype):
    random = torch.Generator().manual_seed(0)
    shapes = {"embeddings.token.weight": (6, 8), "a.weight": (8, 16), "b.weight": (8, 16), "c.bias": (8,)}
    weights = [nn.Parameter(torch.randn(shape, generator=random).to(dtype)) for shape in shapes.values()]
    return settings.create([ParameterGroup(1.0, None, list(shapes), weights)]), weights


def give_gradients(weights, step, divisor=1.0):
    random = torch.Generator().manual_seed(step)
    for weight in weights[:-1]:  # the last one has none
        weight.grad = (torch.randn(weight.shape, generator=random) / divisor).to(weight.dtype)


def everything(optimizer, weights):
    return [*weights, *(tensor for weight in weights for tensor in optimizer.state.get(weight, {}).values())]


@pytest.mark.parametrize(("settings", "dtype"), CASES.values(), ids=CASES)
def test_a_step_is_that_of_gradients_that_were_divided_before(settings, dtype):
    (divides, ours), (expects, theirs) = (created(settings, dtype) for _ in range(2))
    for step in (1, 2, 3):
        give_gradients(ours, step)
        take_step(divides, StepControls(grad_scale=torch.tensor(SCALE**step)))
        give_gradients(theirs, step, SCALE**step)
        take_step(expects, StepControls())
    assert all(map(torch.equal, everything(divides, ours), everything(expects, theirs)))


@pytest.mark.parametrize(("settings", "dtype"), [case for case in CASES.values() if case[0].can_skip])
def test_a_skipped_step_changes_nothing_whatever_the_divisor(settings, dtype):
    optimizer, weights = created(settings, dtype)
    before = [tensor.detach().clone() for tensor in everything(optimizer, weights)]
    give_gradients(weights, 1)
    take_step(optimizer, StepControls(found_inf=torch.tensor(1.0), grad_scale=torch.tensor(math.nan)))
    assert all(map(torch.equal, everything(optimizer, weights), before))


@pytest.mark.parametrize(("name", "passes"), [("AdamW", ["aten::_fused_adamw_"]), ("torch's", ["aten::_foreach_div_"])])
def test_adamw_on_a_cpu_divides_gradients_in_the_pass_of_its_update(name, passes):
    optimizer, weights = created(*CASES[name])
    give_gradients(weights, 1)
    with Written([weight.grad for weight in weights[:-1]]) as written:
        take_step(optimizer, StepControls(grad_scale=torch.tensor(SCALE)))
    assert written.names == passes
