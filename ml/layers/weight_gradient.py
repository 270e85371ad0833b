"""Linear layers whose weights have native gradients, on a CPU with AMX.

Torch's product for the gradient of a weight takes up to three times as long in bfloat16 as the others, because it
transposes its left operand slowly, and is cast to float32 afterwards (`benchmarks/RESULTS.md`).
"""

import ctypes
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ml.layers import native

SOURCE = Path(native.__file__).parent / "weight_gradient.cpp"
_SIZE_MULTIPLE = 32
_BLOCK = 256 * 512  # of the gradient, computed by one thread


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`; in compiled layers whose float32 weights autocast multiplies in bfloat16, with native gradients."""
    if not (torch.compiler.is_compiling() and has_native_gradient(x, weight)):
        return F.linear(x, weight, bias)
    y = _Linear.apply(x.to(torch.bfloat16).flatten(0, -2), weight).unflatten(0, x.shape[:-1])
    return y if bias is None else y + bias.to(y.dtype)


def has_native_gradient(x: Tensor, weight: Tensor) -> bool:
    """True where the gradient of a weight (out, in) is computed without torch, for the dtype, the device and sizes."""
    if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu") or x.numel() == 0 or x.dim() < 2:
        return False
    is_mixed = torch.get_autocast_dtype("cpu") == torch.bfloat16 and weight.dtype == torch.float32
    is_learned = torch.is_grad_enabled() and weight.requires_grad
    fits = all(size % _SIZE_MULTIPLE == 0 for size in weight.shape)
    return native.MULTIPLIES_BFLOAT16 and is_mixed and is_learned and fits


class _Linear(torch.autograd.Function):
    """y = x Wᵀ in bfloat16; ∂x = ∂y W in bfloat16; ∂W = ∂yᵀ x in float32."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        narrow = weight.to(x.dtype)
        ctx.save_for_backward(x, narrow)
        return x @ narrow.t()

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, narrow = ctx.saved_tensors
        gradient = gradient.to(x.dtype)
        of_x = gradient @ narrow if ctx.needs_input_grad[0] else None
        return of_x, weight_gradient(gradient, x)


@torch.library.custom_op("juniper::weight_gradient", mutates_args=())
def weight_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """∂yᵀ x in float32, (out, in), from ∂y (tokens, out) and x (tokens, in) in bfloat16."""
    (num_tokens, outputs), inputs = gradient.shape, x.shape[1]
    num_threads = torch.get_num_threads()
    functions = native.library(SOURCE)
    has_few_blocks = outputs * inputs < _BLOCK * (num_threads - 2)  # for the threads
    if functions is None or has_few_blocks or num_tokens == 0:
        return torch.mm(gradient.t(), x).float()
    gradient, x = gradient.contiguous(), x.contiguous()
    found = x.new_empty(outputs, inputs, dtype=torch.float32)
    functions.weight_gradient(
        *(ctypes.c_void_p(tensor.data_ptr()) for tensor in (gradient, x, found)),
        *(ctypes.c_int64(size) for size in (num_tokens, outputs, inputs)),
        ctypes.c_int(num_threads),
    )
    return found


@weight_gradient.register_fake
def _(gradient, x):
    return x.new_empty(gradient.shape[1], x.shape[1], dtype=torch.float32)
