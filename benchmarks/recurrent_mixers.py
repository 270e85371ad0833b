"""Chunked recurrences against step-by-step recurrences: python benchmarks/recurrent_mixers.py

Forward and backward at T = 2,048 in float32, one sequence. The step-by-step forms are the references of the tests.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timing import compare
from torch import Tensor

from ml.layers.recurrences.delta_rule import gated_delta_rule
from ml.layers.recurrences.delta_rule_reference import gated_delta_rule_reference
from ml.layers.recurrences.selective_scan import selective_scan, selective_scan_reference
from ml.layers.recurrences.state_space_duality import ssd_chunked, ssd_reference

T = 2048
ROUNDS = 3


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, requires_grad=True)


def decays(*shape: int) -> Tensor:
    """Returns log decays between -1 and 0 per step."""
    return (-torch.rand(*shape)).requires_grad_()


def state_space_duality() -> tuple[Callable, Callable]:
    """Mamba-2 of width 512: 16 heads of 64, states of 128."""
    x, B, C = random(1, T, 16, 64), random(1, T, 1, 128), random(1, T, 1, 128)
    dt = torch.rand(1, T, 16).requires_grad_()
    A = (-torch.rand(16)).requires_grad_()
    inputs = (x, dt, A, B, C)
    return training(lambda: ssd_chunked(*inputs, chunk_size=64), inputs), training(
        lambda: ssd_reference(*inputs), inputs
    )


def delta_rule(*per_channel: int) -> tuple[Callable, Callable]:
    """8 heads of 64."""
    query, key = (F.normalize(random(1, T, 8, 64), dim=-1).detach().requires_grad_() for _ in range(2))
    value, decay, beta = random(1, T, 8, 64), decays(1, T, 8, *per_channel), torch.rand(1, T, 8).requires_grad_()
    inputs = (query, key, value, decay, beta)
    return (
        training(lambda: gated_delta_rule(*inputs), inputs),
        training(lambda: gated_delta_rule_reference(*inputs), inputs),
    )


def mamba() -> tuple[Callable, Callable]:
    """Mamba of width 512: 1,024 channels, states of 16."""
    x, dt = random(1, T, 1024), torch.rand(1, T, 1024).requires_grad_()
    A = (-torch.rand(1024, 16)).requires_grad_()
    B, C = random(1, T, 16), random(1, T, 16)
    inputs = (x, dt, A, B, C)
    return training(lambda: selective_scan(*inputs), inputs), training(
        lambda: selective_scan_reference(*inputs), inputs
    )


def training(forward: Callable[[], tuple[Tensor, Tensor]], inputs: tuple[Tensor, ...]) -> Callable[[], None]:
    """Returns a function that computes the output and all gradients."""

    def step() -> None:
        output, _ = forward()
        torch.autograd.grad(output.sum(), inputs, allow_unused=True)

    return step


def main() -> None:
    cases = {
        "Mamba-2 (state-space duality)": state_space_duality(),
        "gated delta rule, a decay for each head": delta_rule(),
        "gated delta rule, a decay for each channel (Kimi)": delta_rule(64),
        "Mamba (selective scan)": mamba(),
    }
    print(f"{'':<50} {'chunked':>10} {'by steps':>10} {'ratio':>7}")
    for name, (fast, reference) in cases.items():
        result = compare(fast, reference, ROUNDS)
        print(f"{name:<50} {result.first:>9.3f}s {result.second:>9.3f}s {result.ratio:>7.1f}")


if __name__ == "__main__":
    main()
