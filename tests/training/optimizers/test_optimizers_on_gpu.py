"""Every optimizer on a GPU against the same steps on the CPU."""

from functools import partial

import pytest
import torch
from devices import CPU, CUDA, relative_error
from torch import nn

from ml.training import SGD, Adafactor, AdamW, Lion, Muon
from ml.training.optimizers import BFloat16State, Blockwise8BitState, ParameterGroup

pytestmark = pytest.mark.gpu
NUM_STEPS = 6
EIGHT_BITS = partial(Blockwise8BitState, 8)
OPTIMIZERS = {  # with the learning rate: moves are far above the rounding of parameters to bfloat16
    "AdamW": (AdamW, 0.1),
    "SGD": (SGD, 0.1),
    "Lion": (Lion, 0.1),
    "Muon": (partial(Muon, others=partial(AdamW, 0.1)), 1.0),
    "Muon, others by Lion": (partial(Muon, others=partial(Lion, 0.1)), 1.0),
    "Adafactor": (Adafactor, 0.1),
    "AdamW, state in bfloat16": (partial(AdamW, state_format=BFloat16State), 0.1),
    "AdamW, state in 8 bits": (partial(AdamW, state_format=EIGHT_BITS), 0.1),
    "Lion, state in 8 bits": (partial(Lion, state_format=EIGHT_BITS), 0.1),
}
SHAPES = {"a.weight": (24, 40), "b.weight": (40, 24), "c.weight": (24, 40), "d.bias": (40,), "e.weight": (8, 1, 4)}


def moves(kind, learning_rate, dtype, device):
    """Returns how far each parameter moves in some steps with random gradients."""
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(shape, generator=generator).to(device, dtype) for shape in SHAPES.values()]
    parameters = [nn.Parameter(start.clone()) for start in starts]
    halves = [(list(SHAPES)[::2], parameters[::2]), (list(SHAPES)[1::2], parameters[1::2])]
    groups = [ParameterGroup(scale, None, *half) for scale, half in zip((1.0, 0.5), halves, strict=True)]
    optimizer = kind(learning_rate).create(groups)
    for _ in range(NUM_STEPS):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(device, dtype)
        optimizer.step()
    return {
        name: parameter.detach().float() - start.float()
        for name, parameter, start in zip(SHAPES, parameters, starts, strict=True)
    }


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-4), (torch.bfloat16, 2**-4)], ids=str)
@pytest.mark.parametrize(("kind", "learning_rate"), OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_steps_are_those_of_the_cpu(kind, learning_rate, dtype, limit):
    """The means are rounded to the state's format after each step, and Muon iterates in bfloat16: 2^-9 and more."""
    is_rounded = isinstance(kind, partial)
    expected, found = (moves(kind, learning_rate, dtype, device) for device in (CPU, CUDA))
    errors = {name: relative_error(move, expected[name]) for name, move in found.items()}
    assert max(errors.values()) < (2**-4 if is_rounded else limit), errors
