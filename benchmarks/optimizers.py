"""Steps of the optimizers against torch's own, and what skipping and averaging cost: python benchmarks/optimizers.py

Of the parameters of a Llama shape with 30 million, in float32 and with gradients at hand. `torch.optim` has no Lion: it
is timed against the AdamW of torch that is written out as operations on lists, as Lion is.
"""

from collections.abc import Callable

import torch
from timing import compare
from torch import nn

from ml.training import SGD, Adafactor, AdamW, ExponentialMovingAverage, Lion, Muon
from ml.training.optimizers import Optimizer, ParameterGroup

HIDDEN, INTERMEDIATE, BLOCKS, VOCABULARY = 384, 1024, 12, 4096
ROUNDS = 7


def shapes() -> dict[str, tuple[int, ...]]:
    """The parameters by name."""
    block = {
        **{f"{name}.weight": (HIDDEN, HIDDEN) for name in ("query", "key", "value", "output")},
        **{f"{name}.weight": (INTERMEDIATE, HIDDEN) for name in ("gate", "up")},
        "down.weight": (HIDDEN, INTERMEDIATE),
        "norm.weight": (HIDDEN,),
    }
    blocks = {f"block_{i}.{name}": shape for i in range(BLOCKS) for name, shape in block.items()}
    return {"embeddings.weight": (VOCABULARY, HIDDEN), **blocks, "head.weight": (VOCABULARY, HIDDEN)}


def parameters() -> ParameterGroup:
    """Parameters with gradients."""
    made = [nn.Parameter(torch.randn(shape)) for shape in shapes().values()]
    for parameter in made:
        parameter.grad = torch.randn_like(parameter)
    return ParameterGroup(1.0, None, list(shapes()), made)


def ours(settings: Optimizer, skips: bool = False) -> Callable[[], object]:
    """A function that takes a step."""
    optimizer = settings.create([parameters()])
    if skips:
        optimizer.found_inf = torch.zeros(())
    return optimizer.step


def muon_of_torch() -> Callable[[], None]:
    """Torch's Muon for what ours takes for matrices, and its AdamW for the rest."""
    group, settings = parameters(), Muon()
    pairs = list(zip(group.names, group.parameters, strict=True))
    matrices = torch.optim.Muon([parameter for name, parameter in pairs if settings.trains(name, parameter)])
    rest = torch.optim.AdamW([p for name, p in pairs if not settings.trains(name, p)], fused=True)

    def step() -> None:
        matrices.step()
        rest.step()

    return step


def average() -> Callable[[], None]:
    """A function that takes a step of AdamW and averages."""
    group = parameters()
    optimizer, mean = AdamW().create([group]), ExponentialMovingAverage().start([group])

    def step() -> None:
        optimizer.step()
        mean.update(2, None)

    return step


def main() -> None:
    group = parameters().parameters
    pairs = {
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
