"""Causal attention of torch with gradients that skip the masked half, on a CPU with AVX-512.

Torch's own gradients on a CPU read every pair of up to 512 queries and keys. Those here take 0.6 of their time in
float32 and 0.2 in bfloat16 (`benchmarks/RESULTS.md`).
"""

import ctypes
import math
from pathlib import Path

import torch
from torch import Tensor

from ml.layers import native
from ml.layers.attention_kernels.kernel import AttentionTask

SOURCE = Path(native.__file__).parent / "causal_gradients.cpp"
_FEWEST_KEYS = 128  # a block of queries
_SIZE_MULTIPLE = 32
_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def has_native_gradients(task: AttentionTask) -> bool:
    """True where `causal_attention` computes a task, and its gradients without torch."""
    if task.device != "cpu" or not task.needs_gradient or not task.causal or task.dropout:
        return False
    if task.has_window or task.has_documents or task.num_keys is None or task.num_queries != task.num_keys:
        return False
    if task.num_keys < _FEWEST_KEYS or task.head_size != task.value_head_size or task.head_size % _SIZE_MULTIPLE:
        return False
    if task.dtype == torch.float32:
        return native.MULTIPLIES_FLOAT32
    return task.dtype == torch.bfloat16 and native.MULTIPLIES_BFLOAT16


def are_equally_typed(*heads: Tensor) -> bool:
    """True where autocast, if it is enabled, leaves query, key and value as they are, in one dtype."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else heads[0].dtype
    return all(x.dtype == dtype for x in heads)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """softmax(q kᵀ · scale) v over earlier keys: (B, N, T, D) over (B, K, T, D), for a task with native gradients."""
    return _CausalAttention.apply(query, key, value, 1 / math.sqrt(query.shape[-1]) if scale is None else scale)


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        output, log_sums = _forward(query, key, value, 0.0, True, scale=scale)
        ctx.save_for_backward(query, key, value, output, log_sums)
        ctx.scale = scale
        return output

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return *causal_gradients(gradient, *ctx.saved_tensors, ctx.scale), None


@torch.library.custom_op("juniper::causal_gradients", mutates_args=())
def causal_gradients(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, log_sums: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query (B, N, T, D), key and value (B, K, T, D).

    Args:
        gradient: Gradient of the output, (B, N, T, D).
        query: (B, N, T, D).
        key: (B, K, T, D).
        value: (B, K, T, D).
        output: (B, N, T, D).
        log_sums: Logarithm of the sum of the exponentials of the scaled scores, (B, N, T).
        scale: Factor of the scores.
    """
    batch, num_heads, length, size = query.shape
    num_threads = torch.get_num_threads()
    functions = native.library(SOURCE)
    if functions is None or batch * key.shape[1] < num_threads:  # one thread computes all heads that share a key
        return _backward(gradient, query, key, value, output, log_sums, 0.0, True, scale=scale)
    found = _empty(query), _empty(key), _empty(value)
    read = [x if x.stride(-1) == 1 else x.contiguous() for x in (gradient, query, key, value, output)]
    log_sums = log_sums.contiguous()
    functions.causal_attention_backward(
        int(query.dtype == torch.bfloat16),
        (ctypes.c_int64 * 5)(batch, length, num_heads, key.shape[1], size),
        (_Strided * len(read))(*map(_strided, read)),
        ctypes.c_void_p(log_sums.data_ptr()),
        (ctypes.c_void_p * len(found))(*(x.data_ptr() for x in found)),
        ctypes.c_float(scale),
        num_threads,
    )
    return found


@causal_gradients.register_fake
def _(gradient, query, key, value, output, log_sums, scale):
    return _empty(query), _empty(key), _empty(value)


class _Strided(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("batch", "head", "time"))]


def _strided(x: Tensor) -> _Strided:
    return _Strided(x.data_ptr(), *x.stride()[:3])


def _empty(x: Tensor) -> Tensor:
    """(B, N, T, D), in memory (B, T, N, D)."""
    return x.new_empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3]).transpose(1, 2)
