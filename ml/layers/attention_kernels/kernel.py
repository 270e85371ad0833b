"""The contract of attention kernels.

A kernel computes softmax(q kᵀ · scale) v for queries, keys and values that a mixer has projected. The features that it
supports are declared in `AttentionKernel.supports` and, where they depend on the device or the shapes, answered by
`AttentionKernel.obstacle`. Both are checked when a mixer is built and when it is called: no option is ignored.
"""

import abc
from typing import NamedTuple

import torch
from torch import Tensor

from ml.layers.context import Context


class Weighting(NamedTuple):
    """From the scores of queries and keys to weights; see `attention_reference`.

    Attributes:
        causal: Masks keys after the query's own position.
        window_size: Number of keys visible to a query, including its own position; None is all.
        scale: Factor of the scores; None is 1/√D.
        soft_cap: c in c · tanh(score / c); None applies no cap.
        sinks: (N), a score for each head in the softmax, without a value.
        documents: (B, S); a query sees only the keys of its document.
        dropout: Dropout probability of the weights.
    """

    causal: bool = True
    window_size: int | None = None
    scale: float | None = None
    soft_cap: float | None = None
    sinks: Tensor | None = None
    documents: Tensor | None = None
    dropout: float = 0.0


class Features(NamedTuple):
    """Features that a kernel supports, or that a task needs.

    Attributes:
        window: `Weighting.window_size`.
        documents: `Weighting.documents`.
        soft_cap: `Weighting.soft_cap`.
        sinks: `Weighting.sinks`.
        dropout: `Weighting.dropout`.
        bidirectional: `Weighting.causal` is False.
        earlier_keys: More keys than queries: a cache, or a stretch of a sequence (`Mesh.context`).
        value_size: Heads of the values of another size than those of the keys.
    """

    window: bool = True
    documents: bool = True
    soft_cap: bool = True
    sinks: bool = True
    dropout: bool = True
    bidirectional: bool = True
    earlier_keys: bool = True
    value_size: bool = True


_NAMES = Features._fields
_DESCRIPTIONS = (
    "a window (window_size)",
    "separated documents",
    "a soft cap (soft_cap)",
    "sinks (attention_sinks)",
    "dropout of the weights (dropout)",
    "attention to later positions (causal = False)",
    "more keys than queries, as with a cache or Mesh.context",
    "value heads of another size than key heads",
)


class AttentionTask(NamedTuple):
    """Attention to compute, without the tensors. None: not known before the first batch.

    Attributes:
        head_size: Size of a query and key head, D.
        value_head_size: Size of a value head, Dv.
        is_grouped: Whether several query heads share a key.
        causal: As in `Weighting`, like the next two.
        window_size: Keys visible to a query.
        soft_cap: Cap of the scores.
        has_sinks: Whether there are sinks.
        dropout: Dropout probability.
        has_documents: Whether documents are separated.
        num_queries: Queries of a row, T.
        num_keys: Keys of a row, S.
        device: Type of the device, such as "cuda".
        dtype: Of query, key and value.
        needs_gradient: Whether a backward pass follows.
    """

    head_size: int
    value_head_size: int
    is_grouped: bool
    causal: bool = True
    window_size: int | None = None
    soft_cap: float | None = None
    has_sinks: bool = False
    dropout: float = 0.0
    has_documents: bool | None = None
    num_queries: int | None = None
    num_keys: int | None = None
    device: str | None = None
    dtype: torch.dtype | None = None
    needs_gradient: bool | None = None

    @property
    def has_window(self) -> bool:
        """True where the window is shorter than the keys."""
        return self.window_size is not None and (self.num_keys is None or self.window_size < self.num_keys)

    @property
    def features(self) -> Features:
        """The features that a kernel must support."""
        return Features(
            window=self.has_window,
            documents=bool(self.has_documents),
            soft_cap=self.soft_cap is not None,
            sinks=self.has_sinks,
            dropout=self.dropout > 0.0,
            bidirectional=not self.causal,
            earlier_keys=self.num_queries != self.num_keys,
            value_size=self.head_size != self.value_head_size,
        )


def task_of(query: Tensor, key: Tensor, value: Tensor, weighting: Weighting) -> AttentionTask:
    """Describes the attention of (B, N, T, D) over (B, K, S, D) and (B, K, S, Dv)."""
    tensors = (query, key, value) if weighting.sinks is None else (query, key, value, weighting.sinks)
    return AttentionTask(
        head_size=query.shape[-1],
        value_head_size=value.shape[-1],
        is_grouped=query.shape[1] != key.shape[1],
        causal=weighting.causal,
        window_size=weighting.window_size,
        soft_cap=weighting.soft_cap,
        has_sinks=weighting.sinks is not None,
        dropout=weighting.dropout,
        has_documents=weighting.documents is not None,
        num_queries=query.shape[2],
        num_keys=key.shape[2],
        device=query.device.type,
        dtype=query.dtype,
        needs_gradient=torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors),
    )


class AttentionKernel(abc.ABC):
    """Base class of attention kernels: derive from it, declare `supports`, and compute in `attend`.

    A kernel has no weights and keeps nothing between calls. What the layers of a pass can share, such as a block mask,
    is kept by `Context.once`.

    Attributes:
        supports: The features that the kernel supports.
    """

    supports: Features = Features()

    @abc.abstractmethod
    def attend(self, query: Tensor, key: Tensor, value: Tensor, weighting: Weighting, context: Context) -> Tensor:
        """Computes attention of a task without an obstacle.

        Args:
            query: (B, N, T, D), at the last T of the S positions of the keys.
            key: (B, K, S, D); N/K adjacent heads share one key and value.
            value: (B, K, S, Dv).
            weighting: From scores to weights.
            context: Of the pass.

        Returns:
            (B, N, T, Dv).
        """

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, weighting: Weighting, context: Context) -> Tensor:
        """As `attend`, for any task.

        Raises:
            ValueError: The kernel does not support it.
        """
        if problem := self.problem(task_of(query, key, value, weighting)):
            raise ValueError(f"Attention.kernel {problem}")
        return self.attend(query, key, value, weighting, context)

    def obstacle(self, task: AttentionTask) -> str | None:
        """The part of a task that the kernel does not support; None where it supports all that is known of it."""
        for description, asked, supported in zip(_DESCRIPTIONS, task.features, self.supports, strict=True):
            if asked and not supported:
                return description
        return None

    def problem(self, task: AttentionTask) -> str | None:
        """The obstacle as a message, with what to do about it; None where there is none."""
        obstacle = self.obstacle(task)
        if obstacle is None:
            return None
        return f"= @{type(self).__name__} does not support {obstacle}: take @AutomaticAttention, or another kernel"

    def chosen(self, task: AttentionTask) -> "AttentionKernel":
        """The kernel that computes a task: this one, unless it chooses among others."""
        return self

    def reason_to_synchronize(self, task: AttentionTask) -> str | None:
        """The reason that a pass synchronizes with the device, and what to set instead; None if it does not."""
        kernel = self.chosen(task)
        return None if kernel is self else kernel.reason_to_synchronize(task)

    def prepare(self, task: AttentionTask, context: Context) -> None:
        """Computes what `attend` shares between layers, before the first compiled block asks for it."""
        kernel = self.chosen(task)
        if kernel is not self:
            kernel.prepare(task, context)
