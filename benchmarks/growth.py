"""Growth of the time of a training step with the sequence length, the batch, the blocks and the experts.

An exponent is the slope between a size and its double: 1 is linear growth. Times are CPU seconds of one thread, which
hardly depend on other load.

    python benchmarks/growth.py
"""

import argparse
import itertools
import math
import time
from collections.abc import Callable

import torch
from llama_steps import Shape, batch_of, juniper_model, juniper_step
from timing import seconds

SMALL = Shape(vocab=1024, hidden=256, blocks=4, heads=4, kv_heads=2, intermediate=704, batch=2, length=512)
EXPERTS = ("DecoderBlock.mlp = @MixtureOfExperts", "MixtureOfExperts.experts_per_token = 2")


def with_experts(number: int) -> tuple[str, ...]:
    """Bindings of a model with this number of experts, two of them for each token."""
    return (*EXPERTS, f"MixtureOfExperts.num_experts = {number}")


SWEEPS: dict[str, tuple[tuple[int, ...], Callable[[int], tuple[Shape, tuple[str, ...]]]]] = {
    "sequence length": ((256, 512, 1024, 2048), lambda size: (SMALL._replace(length=size), ())),
    "batch": ((1, 2, 4, 8), lambda size: (SMALL._replace(batch=size), ())),
    "blocks": ((2, 4, 8, 16), lambda size: (SMALL._replace(blocks=size), ())),
    "experts": ((4, 8, 16, 32), lambda size: (SMALL, with_experts(size))),
}


def step_seconds(shape: Shape, bindings: tuple[str, ...], rounds: int) -> float:
    """Shortest CPU time of a step."""
    step = juniper_step(juniper_model(shape, *bindings), batch_of(shape), "float32", compile=False)
    return min(seconds(step, time.thread_time) for _ in range(rounds + 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    for name, (sizes, make) in SWEEPS.items():
        times = [step_seconds(*make(size), rounds) for size in sizes]
        slopes = [math.log2(later / earlier) for earlier, later in itertools.pairwise(times)]
        measured = ", ".join(f"{size}: {taken:.3f} s" for size, taken in zip(sizes, times, strict=True))
        print(f"{name:<16} {measured}; exponents {', '.join(f'{slope:.2f}' for slope in slopes)}", flush=True)


if __name__ == "__main__":
    main()
