"""Optimizer steps against torch's optimizers; cost of skipping and averaging: python benchmarks/optimizers.py

Uses the parameters of a Llama shape with 30 million parameters, in float32 with gradients. `torch.optim` has no Lion:
Lion is compared with torch's foreach AdamW, because it uses foreach operations too.
"""

from collections.abc import Callable

import torch
from timing import compare
from torch import nn

from ml.distributed import World
from ml.distributed.norms import clip_divisor, local_squares, replicas
from ml.training import SGD, Adafactor, AdamW, ExponentialMovingAverage, Lion, Muon
from ml.training.optimizers import Optimizer, ParameterGroup
from ml.training.optimizers.controls import StepControls, take_step

HIDDEN, INTERMEDIATE, BLOCKS, VOCABULARY = 384, 1024, 12, 4096
ROUNDS = 7


def shapes() -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the parameters by name."""
    block = {
        **{f"{name}.weight": (HIDDEN, HIDDEN) for name in ("query", "key", "value", "output")},
        **{f"{name}.weight": (INTERMEDIATE, HIDDEN) for name in ("gate", "up")},
        "down.weight": (HIDDEN, INTERMEDIATE),
        "norm.weight": (HIDDEN,),
    }
    blocks = {f"block_{i}.{name}": shape for i in range(BLOCKS) for name, shape in block.items()}
    return {"embeddings.weight": (VOCABULARY, HIDDEN), **blocks, "head.weight": (VOCABULARY, HIDDEN)}


def parameters() -> ParameterGroup:
    """Returns parameters with gradients."""
    made = [nn.Parameter(torch.randn(shape)) for shape in shapes().values()]
    for parameter in made:
        parameter.grad = torch.randn_like(parameter)
    return ParameterGroup(1.0, None, list(shapes()), made)


def ours(settings: Optimizer, skips: bool = False) -> Callable[[], object]:
    """Returns a function that takes a step with Juniper's optimizer."""
    optimizer = settings.create([parameters()])
    if skips:
        optimizer.found_inf = torch.zeros(())
    return optimizer.step


def muon_of_torch() -> Callable[[], None]:
    """Returns torch's Muon for the matrices of Juniper's Muon, and torch's AdamW for the others."""
    group, settings = parameters(), Muon()
    pairs = list(zip(group.names, group.parameters, strict=True))
    matrices = torch.optim.Muon([parameter for name, parameter in pairs if settings.trains(name, parameter)])
    rest = torch.optim.AdamW([p for name, p in pairs if not settings.trains(name, p)], fused=True)

    def step() -> None:
        matrices.step()
        rest.step()

    return step


def clipped() -> Callable[[], None]:
    """Returns a function that measures the norm of the gradients, clips them and takes a step of AdamW."""
    group = parameters()
    optimizer, weights = AdamW().create([group]), dict(zip(group.names, group.parameters, strict=True))
    counted = replicas(weights, World())

    def step() -> None:
        squares = local_squares({name: weight.grad for name, weight in weights.items()}, counted)
        divisor = clip_divisor(squares.sum().sqrt().float(), 1.0)
        take_step(optimizer, StepControls(grad_scale=divisor))

    return step


def clipped_by_torch() -> Callable[[], None]:
    """Returns a function that does the same with torch alone."""
    weights = parameters().parameters
    optimizer = torch.optim.AdamW(weights, fused=True)

    def step() -> None:
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()

    return step


def average() -> Callable[[], None]:
    """Returns a function that takes a step of AdamW and updates the average."""
    group = parameters()
    optimizer, mean = AdamW().create([group]), ExponentialMovingAverage().start([group])

    def step() -> None:
        optimizer.step()
        mean.update(2, None)

    return step


def main() -> None:
    group = parameters().parameters
    pairs = {
        "clipping and AdamW against torch's (fused)": (clipped(), clipped_by_torch()),
        "Lion against AdamW (foreach)": (ours(Lion()), torch.optim.AdamW(group, foreach=True).step),
        "SGD against torch's (foreach)": (ours(SGD()), torch.optim.SGD(group, momentum=0.9, foreach=True).step),
        "Adafactor against torch's": (ours(Adafactor()), torch.optim.Adafactor(group).step),
        "Muon against torch's": (ours(Muon()), muon_of_torch()),
        **{
            f"{type(kind).__name__} that may skip against one that never does": (ours(kind, skips=True), ours(kind))
            for kind in (AdamW(), SGD(), Lion(), Muon(), Adafactor())
        },
        "AdamW and an average against AdamW": (average(), ours(AdamW())),
    }
    print(f"{'':<56} {'first':>9} {'second':>9} {'second / first':>15}")
    for name, (first, second) in pairs.items():
        result = compare(first, second, ROUNDS, warmup=2)
        print(f"{name:<56} {1000 * result.first:>7.0f}ms {1000 * result.second:>7.0f}ms {result.ratio:>15.2f}")


if __name__ == "__main__":
    main()
