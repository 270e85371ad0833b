"""Attention within packed documents by FlashAttention's form for sequences of variable length."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ml.config import configurable
from ml.layers.attention_kernels.kernel import AttentionKernel, AttentionTask, Features, Weighting
from ml.layers.context import Context

_HALF = (torch.bfloat16, torch.float16)
_LARGEST_HEAD = 256


@configurable
class VariableLengthAttention(AttentionKernel):
    """Attention of each document by itself, by `torch.nn.attention.varlen.varlen_attn` (FlashAttention-2, Dao 2023).

    The documents of a batch are one sequence after another, without padding and without a mask. Counting them
    synchronizes the GPU once a pass. Needs a GPU and bfloat16 or float16.
    """

    supports = Features(soft_cap=False, sinks=False, dropout=False, earlier_keys=False, value_size=False)

    def obstacle(self, task: AttentionTask) -> str | None:
        if (obstacle := super().obstacle(task)) is not None:
            return obstacle
        if task.head_size > _LARGEST_HEAD or task.head_size % 8:
            return f"heads of {task.head_size} (multiples of 8 up to {_LARGEST_HEAD})"
        if task.device not in (None, "cuda"):
            return f"{task.device} (a GPU only)"
        if task.dtype not in (None, *_HALF):
            return f"{task.dtype} (bfloat16 and float16 only): set Trainer.precision = @MixedBFloat16"
        return None

    def reason_to_synchronize(self, task: AttentionTask) -> str | None:
        """The count of the documents."""
        if task.device in (None, "cpu") or not task.has_documents:
            return None
        return "= @VariableLengthAttention counts the documents of each batch: take @FlexAttention"

    def attend(self, query: Tensor, key: Tensor, value: Tensor, weighting: Weighting, context: Context) -> Tensor:
        batch_size, _, length, _ = query.shape
        starts = _shared_starts(batch_size, length, weighting.documents, context, query.device)
        before = -1 if weighting.window_size is None else weighting.window_size - 1
        options = {"scale": weighting.scale, "window_size": (before, 0 if weighting.causal else before)}
        if _asks_for_groups():
            options["enable_gqa"] = query.shape[1] != key.shape[1]
        flat = [tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value)]  # (B T, N, D)
        mixed = _function()(*flat, starts, starts, length, length, **options)
        return mixed.unflatten(0, (batch_size, length)).transpose(1, 2)

    def prepare(self, task: AttentionTask, context: Context) -> None:
        if context.documents is not None:
            batch_size, length = context.documents.shape
            _shared_starts(batch_size, length, context.documents, context, context.documents.device)


def _function() -> Callable[..., Any]:
    from torch.nn.attention.varlen import varlen_attn

    function: Callable[..., Any] = varlen_attn
    return function


@torch.compiler.assume_constant_result
def _asks_for_groups() -> bool:
    """True where grouped heads need an argument, which torch 2.11 does not have."""
    return "enable_gqa" in inspect.signature(_function()).parameters


def _shared_starts(
    batch_size: int, length: int, documents: Tensor | None, context: Context, device: torch.device
) -> Tensor:
    """First position of each document in the concatenated rows, and the end of the last one: (documents + 1)."""

    def make() -> Tensor:
        end = batch_size * length
        if documents is None:
            return torch.arange(0, end + 1, length, dtype=torch.int32, device=device)
        is_first = torch.ones_like(documents, dtype=torch.bool)
        is_first[:, 1:] = documents[:, 1:] != documents[:, :-1]
        starts = is_first.flatten().nonzero().squeeze(1)
        return torch.nn.functional.pad(starts, (0, 1), value=end).to(torch.int32)

    return context.once(("starts of documents", batch_size, length, documents is not None), make)
