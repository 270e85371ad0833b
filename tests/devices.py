"""Devices that tests run on, and the distance between results of two of them."""

import pytest
import torch
from torch import Tensor

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
every_device = pytest.mark.parametrize("device", [CPU, pytest.param(CUDA, marks=pytest.mark.gpu)], ids=str)


def relative_error(found: Tensor, expected: Tensor, least: float = 0.0) -> float:
    """Returns the root mean square of the difference, over that of what is expected or `least`."""
    expected = expected.detach().double().cpu()
    difference = found.detach().double().cpu() - expected
    return (difference.square().mean().sqrt() / expected.square().mean().sqrt().clamp(min=least)).item()
