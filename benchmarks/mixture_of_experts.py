"""A mixture of experts against a dense GatedMLP with the same active FLOPs: forward and backward, alternating.

Measures both ways of computing the experts, in float32, in bfloat16 and in bfloat16 compute (autocast). Each call draws
new tokens, so that the load of the experts varies as in training.

    python benchmarks/mixture_of_experts.py
"""

import argparse
import contextlib
from collections.abc import Callable
from functools import partial

import torch
from timing import compare, is_skipped
from torch import nn

from ml.layers import GatedMLP, Linear
from ml.layers.moe import MixtureOfExperts
from ml.models import materialize

HIDDEN, ACTIVE = 512, 1024
SHAPES = {"8 experts, top 2": (8, 2), "32 experts, top 4": (32, 4)}
PRECISIONS = {
    "float32": (torch.float32, contextlib.nullcontext),
    "bfloat16": (torch.bfloat16, contextlib.nullcontext),
    "bfloat16 compute": (torch.float32, lambda: torch.autocast("cpu", dtype=torch.bfloat16)),
}
BFLOAT16 = ("bfloat16", "bfloat16 compute")


def dense() -> nn.Module:
    return GatedMLP(HIDDEN, intermediate_size=ACTIVE, linear=partial(Linear, bias=False))


def mixture(num_experts: int, experts_per_token: int, grouped: bool) -> nn.Module:
    expert = partial(GatedMLP, intermediate_size=ACTIVE // experts_per_token, linear=partial(Linear, bias=False))
    return MixtureOfExperts(
        HIDDEN, num_experts=num_experts, experts_per_token=experts_per_token, expert=expert, grouped=grouped
    )


def pass_through(layer: nn.Module, num_tokens: int, dtype: torch.dtype, context: Callable) -> Callable[[], None]:
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(1, num_tokens, HIDDEN, generator=generator)

    def call() -> None:
        x = torch.randn(1, num_tokens, HIDDEN, generator=generator).to(dtype).requires_grad_()
        with context():
            y = layer(x)
        y.backward(gradient.to(y.dtype))
        layer.zero_grad(set_to_none=True)

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--num_tokens", type=int, default=4096)
    arguments = parser.parse_args()
    print(f"{'experts':<18} {'precision':<16}  {'computed':<10}  {'dense, s':>8}  {'mixture, s':>10}  ratio")
    skipped = BFLOAT16 if is_skipped(torch.bfloat16) else ()
    for shape, (num_experts, experts_per_token) in SHAPES.items():
        for name, (dtype, context) in PRECISIONS.items():
            if name in skipped:
                continue
            for grouped in (False, True):
                layers = dense(), mixture(num_experts, experts_per_token, grouped)
                calls = [pass_through(materialize(x).to(dtype), arguments.num_tokens, dtype, context) for x in layers]
                result = compare(*calls, arguments.rounds, warmup=2)
                kind = "grouped" if grouped else "one by one"
                times = f"{result.first:>8.3f}  {result.second:>10.3f}  {result.ratio:.2f}"
                print(f"{shape:<18} {name:<16}  {kind:<10}  {times}", flush=True)


if __name__ == "__main__":
    main()
