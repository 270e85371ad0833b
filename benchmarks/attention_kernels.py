"""Attention kernels on the CPU, forward and backward: python benchmarks/attention_kernels.py [DTYPE] [LENGTH...]

`DotProductAttention` (torch's kernel, with a mask where one is needed) against `BlockwiseAttention`, 8 heads of 64 with
2 key-value heads. The last column is the kernel that `AutomaticAttention` takes.
"""

import sys
from collections.abc import Callable

import torch
from timing import compare
from torch import Tensor

from ml.layers import AttentionKernel, AutomaticAttention, BlockwiseAttention, Context, DotProductAttention
from ml.layers.attention_kernels import Weighting, task_of

ROUNDS = 5
NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE = 8, 2, 64


def cases(length: int) -> dict[str, Weighting]:
    """Masks by name: all keys, windows, and packed documents of equal length."""
    windows = [size for size in (64, 256, length // 4, length // 2) if size <= length // 2]
    masks = {"causal": Weighting()}
    masks.update({f"window {size}": Weighting(window_size=size) for size in dict.fromkeys(windows)})
    for size in (128, 512, length):
        if size <= length:
            documents = (torch.arange(length) // size)[None]
            masks[f"documents of {size}"] = Weighting(documents=documents)
    return masks


def step(kernel: AttentionKernel, tensors: list[Tensor], gradient: Tensor, weighting: Weighting) -> Callable:
    """Returns a function that computes the output and all gradients of one layer."""
    return lambda: torch.autograd.grad(kernel(*tensors, weighting, Context()), tensors, gradient)


def main(dtype: torch.dtype, lengths: list[int]) -> None:
    print(f"{'':<34} {'dot product':>12} {'blockwise':>12} {'ratio':>7}  taken")
    for length in lengths:
        shapes = [(1, heads, length, HEAD_SIZE) for heads in (NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS)]
        tensors = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
        gradient = torch.randn(shapes[0], dtype=dtype)
        for name, weighting in cases(length).items():
            pair = (
                step(kernel, tensors, gradient, weighting) for kernel in (BlockwiseAttention(), DotProductAttention())
            )
            result = compare(*pair, ROUNDS, warmup=1)
            taken = type(AutomaticAttention().chosen(task_of(*tensors, weighting))).__name__
            times = f"{1000 * result.second:>10.1f}ms {1000 * result.first:>10.1f}ms {result.ratio:>7.2f}"
            print(f"{f'{length} tokens, {name}':<34} {times}  {taken}", flush=True)


if __name__ == "__main__":
    names = [word for word in sys.argv[1:] if not word.isdigit()] or ["float32"]
    main(getattr(torch, names[0]), [int(word) for word in sys.argv[1:] if word.isdigit()] or [512, 1024, 2048, 4096])
