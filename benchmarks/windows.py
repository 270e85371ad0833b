"""Sliding-window attention on the CPU against torch's kernel with a mask: python benchmarks/windows.py

Forward and backward of 8 heads of 64 with 2 key-value heads, over 1,024 and 2,048 tokens in float32.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timing import compare
from torch import Tensor

from ml.layers.mixers.attention_reference import visible_keys
from ml.layers.mixers.dot_product_attention import dot_product_attention

ROUNDS = 7
NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE = 8, 2, 64


def masked(query: Tensor, key: Tensor, value: Tensor, window_size: int) -> Tensor:
    """Returns `scaled_dot_product_attention`, which computes all scores and masks those outside the window."""
    mask = visible_keys(query.shape[2], key.shape[2], True, window_size, None, query.device)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)


def step(attend: Callable[..., Tensor], tensors: list[Tensor], gradient: Tensor, window_size: int) -> Callable:
    """Returns a function that computes the output and all gradients."""
    return lambda: torch.autograd.grad(attend(*tensors, window_size=window_size), tensors, gradient)


def main() -> None:
    print(f"{'':<28} {'masked':>10} {'Juniper':>10} {'masked / Juniper':>17}")
    for length in (1024, 2048):
        for window_size in (16, 64, 256, length // 2):
            shapes = [(1, heads, length, HEAD_SIZE) for heads in (NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS)]
            tensors = [torch.randn(shape, requires_grad=True) for shape in shapes]
            gradient = torch.randn(shapes[0])
            ours, theirs = (step(one, tensors, gradient, window_size) for one in (dot_product_attention, masked))
            result = compare(ours, theirs, ROUNDS, warmup=2)
            times = f"{1000 * result.second:>8.1f}ms {1000 * result.first:>8.1f}ms"
            print(f"{f'{length} tokens, window {window_size}':<28} {times} {result.ratio:>17.2f}")


if __name__ == "__main__":
    main()
