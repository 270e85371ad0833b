"""Causal attention that skips the masked half, on a CPU with AVX-512.

Torch's own on a CPU reads every pair of up to 512 queries and keys. Times of both are in `benchmarks/RESULTS.md`.
"""

import ctypes
import math
from pathlib import Path

import torch
from torch import Tensor

from ml.layers import native
from ml.layers.attention_kernels.kernel import AttentionTask

SOURCE = Path(native.__file__).parent / "causal_attention.cpp"
_FEWEST_KEYS = 128  # a block of queries
_SIZE_MULTIPLE = 32
_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def has_native_kernel(task: AttentionTask) -> bool:
    """True where `causal_attention` computes a task without torch."""
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
    """softmax(q kᵀ · scale) v over earlier keys: (B, N, T, D) over (B, K, T, D), for a task with a native kernel."""
    return _CausalAttention.apply(query, key, value, 1 / math.sqrt(query.shape[-1]) if scale is None else scale)


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        output, log_sums = causal_forward(query, key, value, scale)
        ctx.save_for_backward(query, key, value, output, log_sums)
        ctx.scale = scale
        return output

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return *causal_backward(gradient, *ctx.saved_tensors, ctx.scale), None


@torch.library.custom_op("juniper::causal_attention", mutates_args=())
def causal_forward(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Output (B, N, T, D), and logarithm of the sum of the exponentials of the scaled scores, (B, N, T), in float32.

    Args:
        query: (B, N, T, D).
        key: (B, K, T, D).
        value: (B, K, T, D).
        scale: Factor of the scores.
    """
    functions = _functions(key)
    if functions is None:
        output, log_sums = _forward(query, key, value, 0.0, True, scale=scale)
        return _empty(query).copy_(output), log_sums.contiguous()
    output, log_sums = _empty(query), _empty_sums(query)
    read = [_rows(x) for x in (query, key, value)]
    functions.causal_attention_forward(
        *_task(query, key, read),
        ctypes.c_void_p(output.data_ptr()),
        ctypes.c_void_p(log_sums.data_ptr()),
        ctypes.c_float(scale),
        torch.get_num_threads(),
    )
    return output, log_sums


@causal_forward.register_fake
def _(query, key, value, scale):
    return _empty(query), _empty_sums(query)


@torch.library.custom_op("juniper::causal_attention_backward", mutates_args=())
def causal_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, log_sums: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query (B, N, T, D), key and value (B, K, T, D).

    Args:
        gradient: Gradient of the output, (B, N, T, D).
        query: (B, N, T, D).
        key: (B, K, T, D).
        value: (B, K, T, D).
        output: Of `causal_forward`.
        log_sums: Of `causal_forward`.
        scale: Factor of the scores.
    """
    functions = _functions(key)
    if functions is None:
        found = _backward(gradient, query, key, value, output, log_sums, 0.0, True, scale=scale)
        return _empty(query).copy_(found[0]), _empty(key).copy_(found[1]), _empty(value).copy_(found[2])
    found = _empty(query), _empty(key), _empty(value)
    read = [_rows(x) for x in (gradient, query, key, value, output)]
    log_sums = log_sums.contiguous()
    functions.causal_attention_backward(
        *_task(query, key, read),
        ctypes.c_void_p(log_sums.data_ptr()),
        (ctypes.c_void_p * len(found))(*(x.data_ptr() for x in found)),
        ctypes.c_float(scale),
        torch.get_num_threads(),
    )
    return found


@causal_backward.register_fake
def _(gradient, query, key, value, output, log_sums, scale):
    return _empty(query), _empty(key), _empty(value)


def _functions(key: Tensor) -> ctypes.CDLL | None:
    """None where one thread for all heads that share a key leaves others idle, too."""
    return None if key.shape[0] * key.shape[1] < torch.get_num_threads() else native.library(SOURCE)


class _Strided(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("batch", "head", "time"))]


def _task(query: Tensor, key: Tensor, read: list[Tensor]) -> tuple:
    """Arguments of both functions: 1 for bfloat16, the shape, the heads."""
    batch, num_heads, length, size = query.shape
    shape = (ctypes.c_int64 * 5)(batch, length, num_heads, key.shape[1], size)
    heads = (_Strided * len(read))(*(_Strided(x.data_ptr(), *x.stride()[:3]) for x in read))
    return int(query.dtype == torch.bfloat16), shape, heads


def _rows(x: Tensor) -> Tensor:
    """Vectors of adjacent numbers."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _empty(x: Tensor) -> Tensor:
    """(B, N, T, D), in memory (B, T, N, D)."""
    return x.new_empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3]).transpose(1, 2)


def _empty_sums(query: Tensor) -> Tensor:
    """(B, N, T)."""
    return query.new_empty(query.shape[:3], dtype=torch.float32)
