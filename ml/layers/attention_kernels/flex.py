"""Attention by FlexAttention."""

import functools
import hashlib
import importlib.util
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from ml.config import configurable
from ml.layers.attention_kernels.block_mask import block_mask
from ml.layers.attention_kernels.blockwise import BlockwiseAttention
from ml.layers.attention_kernels.kernel import AttentionKernel, AttentionTask, Features, Weighting, task_of
from ml.layers.context import Context
from ml.layers.tracing import with_own_code

_SMALLEST_HEAD, _LARGEST_HEAD = 16, 256


@configurable
class FlexAttention(AttentionKernel):
    """Attention by a kernel that torch generates from the mask and the soft cap (Dong et al. 2024, FlexAttention).

    Blocks of queries and keys that see nothing of each other are skipped. The mask of blocks is made once a pass for
    all layers with the same window. The kernel is compiled when it is first called, which takes some seconds. On a CPU
    torch has no backward pass for it. A single query, as in decoding, is computed by `BlockwiseAttention`.
    """

    supports = Features(dropout=False)

    def obstacle(self, task: AttentionTask) -> str | None:
        if (obstacle := super().obstacle(task)) is not None:
            return obstacle
        sizes = {task.head_size, task.value_head_size}
        if min(sizes) < _SMALLEST_HEAD or max(sizes) > _LARGEST_HEAD:
            return f"heads of {task.head_size} (from {_SMALLEST_HEAD} to {_LARGEST_HEAD})"
        if task.device == "cpu" and task.needs_gradient:
            return "training on a CPU"
        if task.device == "cpu" and task.has_sinks:
            return "sinks on a CPU (attention_sinks)"
        if task.device == "cuda" and not has_triton():
            return "a GPU without Triton, which is not installed"
        return None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, weighting: Weighting, context: Context) -> Tensor:
        if query.shape[2] == 1:  # over more keys each time: nothing to compile
            return BlockwiseAttention().attend(query, key, value, weighting, context)
        sinks, task = weighting.sinks, task_of(query, key, value, weighting)
        found = _function(query.device, task, weighting.scale)(
            query,
            key,
            value,
            score_mod=None if weighting.soft_cap is None else _capped(weighting.soft_cap),
            block_mask=_shared_mask(task, weighting.documents, context, query.device),
            scale=weighting.scale,
            enable_gqa=task.is_grouped,
            return_aux=None if sinks is None else _request(),
        )
        if sinks is None:
            return found
        output, auxiliary = found
        # A sink adds exp(sink) to the sum of the weights, exp(lse).
        share = torch.sigmoid(auxiliary.lse - sinks[:, None])
        return output * share[..., None].to(output.dtype)

    def prepare(self, task: AttentionTask, context: Context) -> None:
        _shared_mask(task, context.documents, context, torch.device(task.device or "cpu"))


@torch.compiler.assume_constant_result
def has_triton() -> bool:
    """True where the compiler of GPU kernels is installed."""
    return importlib.util.find_spec("triton") is not None


def _shared_mask(task: AttentionTask, documents: Tensor | None, context: Context, device: torch.device) -> Any:
    """The block mask of a task; None where every query sees every key."""
    if not task.causal and not task.has_window and documents is None:
        return None
    window_size = task.window_size if task.has_window else None
    sizes = task.num_queries or 0, task.num_keys or 0
    key = ("block mask", *sizes, task.causal, window_size, documents is not None)
    return context.once(key, lambda: block_mask(*sizes, task.causal, window_size, documents, device))


def _function(device: torch.device, task: AttentionTask, scale: float | None) -> Callable[..., Any]:
    """FlexAttention, compiled unless it is part of what is being compiled."""
    from torch.nn.attention.flex_attention import flex_attention  # takes a second to import

    function: Callable[..., Any] = flex_attention
    if torch.compiler.is_compiling():
        return function
    window_size = task.window_size if task.has_window else None
    of_mask = task.causal, window_size, task.has_documents, task.soft_cap, task.has_sinks
    kind = (*of_mask, task.is_grouped, task.head_size, task.value_head_size, task.dtype, task.needs_gradient, scale)
    return functools.partial(_compiled(device.type, kind), function)


@functools.cache
def _compiled(device: str, kind: Hashable) -> Callable[..., Any]:
    """The compiled call of each kind of mask and heads, which has its own limit of variants.

    On a GPU more variants than the limit are an error: torch would store all scores without a word. On a CPU there is
    one for every length: torch 2.13 generates code that does not compile for any length and documents.
    """
    name = f"of_kind_{hashlib.sha256(repr(kind).encode()).hexdigest()[:8]}"  # torch keeps dynamic sizes by name
    own = with_own_code(_call, name)
    return torch.compile(own, dynamic=False) if device == "cpu" else torch.compile(own, fullgraph=True)


def _call(function: Callable[..., Any], *heads: Tensor, **options: Any) -> Any:
    return function(*heads, **options)


def _request() -> Any:
    from torch.nn.attention.flex_attention import AuxRequest

    return AuxRequest(lse=True)


@functools.cache
def _capped(soft_cap: float) -> Callable[..., Tensor]:
    def cap(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return soft_cap * torch.tanh(score / soft_cap)

    return cap
