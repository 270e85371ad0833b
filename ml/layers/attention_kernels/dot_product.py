"""Attention by torch's own function."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ml.config import configurable
from ml.layers.attention_kernels.causal_attention import are_equally_typed, causal_attention, has_native_kernel
from ml.layers.attention_kernels.kernel import AttentionKernel, AttentionTask, Features, Weighting, task_of
from ml.layers.attention_kernels.visibility import visible_keys
from ml.layers.context import Context

_HALF = (torch.bfloat16, torch.float16)
_FLASH_HEAD_SIZE = 256  # the largest


@configurable
class DotProductAttention(AttentionKernel):
    """Attention by `torch.nn.functional.scaled_dot_product_attention` (FlashAttention on a GPU, Dao 2023).

    A window, documents and earlier keys need a mask (T, S), which is made once a pass on a CPU and refused on a GPU.
    Groups of heads share keys in memory too; where torch would repeat them, the kernel is refused. In a compiled block
    on a CPU with AVX-512, `causal_attention` computes causal attention without a mask.
    """

    supports = Features(soft_cap=False, sinks=False)

    def obstacle(self, task: AttentionTask) -> str | None:
        if (obstacle := super().obstacle(task)) is not None:
            return obstacle
        if task.num_queries == 1 or task.device is None:
            return None
        if task.device != "cpu" and needs_mask(task):
            return f"a window, documents or earlier keys on {task.device}, for which it needs a mask (T, S)"
        if task.is_grouped and not _is_fused(task):
            return "grouped heads here, for which torch repeats the keys (dtype, dropout or head sizes)"
        return None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, weighting: Weighting, context: Context) -> Tensor:
        task = task_of(query, key, value, weighting)
        is_native = torch.compiler.is_compiling() and has_native_kernel(task)
        if is_native and are_equally_typed(query, key, value):
            return causal_attention(query, key, value, weighting.scale)
        heads, is_single = query.shape[1], bool(task.num_queries == 1)
        if is_single:  # its heads are the queries of their key
            query = query.unflatten(1, (key.shape[1], -1)).squeeze(3)  # (B, K, N / K, D)
        mask = None
        if needs_mask(task):
            mask = _mask(task, weighting.documents, context, query.device, query.dtype)
        mixed = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=weighting.dropout,
            is_causal=mask is None and task.causal and not is_single,
            scale=weighting.scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return mixed.reshape(mixed.shape[0], heads, -1, mixed.shape[-1])

    def prepare(self, task: AttentionTask, context: Context) -> None:
        if needs_mask(task) and task.dtype is not None:
            _mask(task, context.documents, context, torch.device(task.device or "cpu"), task.dtype)


def needs_mask(task: AttentionTask) -> bool:
    """True where `scaled_dot_product_attention` needs a mask (T, S)."""
    is_offset = task.causal and task.num_queries not in (1, task.num_keys)
    return task.has_window or bool(task.has_documents) or is_offset


def _is_fused(task: AttentionTask) -> bool:
    """True where torch has a kernel for grouped heads, which does not repeat the keys."""
    if task.head_size != task.value_head_size:
        return False
    if task.device == "cpu":
        return task.dropout == 0.0
    return task.dtype in _HALF and task.head_size <= _FLASH_HEAD_SIZE


def _mask(
    task: AttentionTask, documents: Tensor | None, context: Context, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """0 where a query sees a key and -inf elsewhere, (T, S) or (B, 1, T, S)."""

    def make() -> Tensor:
        args = (num_queries, num_keys, task.causal, task.window_size, documents, device)
        visible = visible_keys(*args)
        return torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, -torch.inf)

    num_queries, num_keys = task.num_queries or 0, task.num_keys or 0
    key = ("additive mask", num_queries, num_keys, task.causal, task.window_size, documents is not None, dtype)
    return context.once(key, make)
