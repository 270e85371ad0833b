"""Floating-point operations of the operators that torch's table `flop_registry` does not have."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils.flop_counter import flop_registry

from ml.layers.attention_kernels import mean_visible_keys

_BACKWARD = 2.5  # times the forward pass: five products of matrices instead of two (FlashAttention-2, section 4.1)


def flops_of(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> float:
    """Returns the operations of matrix products, convolutions and attention; 0 for any other operator.

    Args:
        operation: The overload of an operator of torch.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        result: What it returned.
    """
    packet = operation.overloadpacket
    if (count := _COUNTS.get(str(packet))) is not None:
        return count(args, kwargs)
    if packet in flop_registry:
        return float(flop_registry[packet](*args, **kwargs, out_val=result))
    return 0.0


def _attention(query: Tensor, key: Tensor, value: Tensor, keys: float) -> float:
    """The two products of attention, where a query sees `keys` keys in the mean."""
    num_queries = math.prod(query.shape[:3])
    return 2.0 * num_queries * keys * (query.shape[-1] + value.shape[-1])


def _blockwise(args: Sequence[Any], _: Mapping[str, Any]) -> float:
    query, key, value = args[:3]
    causal, window_size = args[5:7]
    return _attention(query, key, value, mean_visible_keys(key.shape[2], causal, window_size))


def _blockwise_backward(args: Sequence[Any], kwargs: Mapping[str, Any]) -> float:
    return _BACKWARD * _blockwise(args[1:], kwargs)


def _fused(args: Sequence[Any], kwargs: Mapping[str, Any], is_causal: bool) -> float:
    query, key, value = args[:3]
    keys = mean_visible_keys(key.shape[2], True, None) if is_causal else key.shape[2]
    return _attention(query, key, value, keys)


def _fused_forward(args: Sequence[Any], kwargs: Mapping[str, Any]) -> float:
    is_causal = args[4] if len(args) > 4 else kwargs.get("is_causal", False)  # after query, key, value, dropout
    return _fused(args, kwargs, is_causal)


def _fused_backward(args: Sequence[Any], kwargs: Mapping[str, Any]) -> float:
    return _BACKWARD * _fused(
        args[1:], kwargs, args[7]
    )  # after gradient, query, key, value, output, logsumexp, dropout


def _grouped(args: Sequence[Any], _: Mapping[str, Any]) -> float:
    """Rows of each group times its matrix, (M, K) (G, K, N), or a matrix of each group, (M, K) (K, N) -> (G, M, N)."""
    left, right = args[:2]
    return 2.0 * left.shape[-2] * left.shape[-1] * right.shape[-1]


_COUNTS: dict[str, Callable[[Sequence[Any], Mapping[str, Any]], float]] = {
    "juniper.blockwise_attention": _blockwise,
    "juniper.blockwise_attention_backward": _blockwise_backward,
    "aten._scaled_dot_product_flash_attention_for_cpu": _fused_forward,
    "aten._scaled_dot_product_flash_attention_for_cpu_backward": _fused_backward,
    "aten._grouped_mm": _grouped,
}
