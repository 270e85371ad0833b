"""Fused projections of one input against separate projections: python benchmarks/fused_projections.py

Forward and backward of query, key and value (8 heads, 2 key-value heads) and of gate and up, over 2,048 tokens.
"""

from collections.abc import Callable

import torch
from timing import compare, is_skipped

from ml.layers import Linear, Projections
from ml.models import materialize

NUM_TOKENS = 2048
ROUNDS = 15


def step(sizes: list[int], hidden_size: int, dtype: torch.dtype, fused: bool) -> Callable[[], None]:
    """Returns a function that computes the outputs and all gradients."""
    layers = torch.nn.ModuleList(Linear(hidden_size, size, bias=False) for size in sizes)
    materialize(layers).to(dtype)
    projections = Projections(list(layers), fused=fused)
    x = torch.randn(1, NUM_TOKENS, hidden_size, dtype=dtype, requires_grad=True)
    gradients = [torch.randn(1, NUM_TOKENS, size, dtype=dtype) for size in sizes]

    def call() -> None:
        torch.autograd.grad(projections(x), [x, *layers.parameters()], gradients)

    return call


def main() -> None:
    print(f"{'':<44} {'separate':>10} {'fused':>10} {'separate / fused':>17}")
    dtypes = [torch.float32, *([] if is_skipped(torch.bfloat16) else [torch.bfloat16])]
    for hidden_size in (128, 512, 1024):
        kinds = {
            "query, key, value": [hidden_size, hidden_size // 4, hidden_size // 4],
            "gate, up": [hidden_size * 8 // 3, hidden_size * 8 // 3],
        }
        for name, sizes in kinds.items():
            for dtype in dtypes:
                fused, separate = (step(sizes, hidden_size, dtype, fused) for fused in (True, False))
                result = compare(fused, separate, ROUNDS, warmup=3)
                label = f"{name}, width {hidden_size}, {str(dtype).removeprefix('torch.')}"
                times = f"{1000 * result.second:>8.2f}ms {1000 * result.first:>8.2f}ms"
                print(f"{label:<44} {times} {result.ratio:>17.2f}")


if __name__ == "__main__":
    main()
