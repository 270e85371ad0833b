"""One stage of a pipeline."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ml.distributed.neighbors import Neighbors
from ml.distributed.stretch import ContextOfStretch
from ml.layers.context import Auxiliary, Context
from ml.layers.loss import LossSums
from ml.models.language_model import LanguageModel, with_auxiliary
from ml.targets import IGNORED


class Stage(nn.Module):
    """Some consecutive blocks of a model; the first stage has the embeddings too, and the last one the head.

    Takes the tokens (B, T), or the residual stream (B, T, H) of the stage before, and returns the residual stream, or
    the loss (1) in the last stage. A model with multi-token prediction passes its embedded tokens from stage to stage
    as a second tensor. Losses of routers are attached to the residual stream: its backward pass adds their gradients.

    Args:
        model: The model that the parts belong to, not a child of the stage.
        index: Index of the stage.
        num_stages: Number of stages.
        blocks: The blocks, in order.
        dtype: Dtype of the residual stream between stages.

    Attributes:
        autocast: Returns the context manager of a forward pass.
        neighbors: The ranks with the other stretches of the same sequences; None without context parallel.
        measured: The sums of each forward pass since this list was cleared; without a loss except in the last stage.
    """

    def __init__(
        self, model: LanguageModel, index: int, num_stages: int, blocks: Sequence[nn.Module], dtype: torch.dtype
    ):
        super().__init__()
        vars(self)["model"] = model
        self.index = index
        self.is_first, self.is_last = index == 0, index == num_stages - 1
        self.dtype = dtype
        self.autocast: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
        self.neighbors: Neighbors | None = None
        self.measured: list[LossSums] = []
        self.blocks = nn.ModuleList(blocks)
        if self.is_first:
            self.embeddings = model.embeddings
        if self.is_last:
            self.head, self.multi_token = model.head, model.multi_token
            self.tied = model.embeddings.token if model.tie_word_embeddings else None

    @property
    def num_streams(self) -> int:
        """Number of tensors (B, T, H) that pass between two stages."""
        return 1 if vars(self)["model"].multi_token is None else 2

    def forward(
        self, x: Tensor, *embedded: Tensor, targets: Tensor, num_targets: int, documents: Tensor | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """Computes a micro-batch.

        Args:
            x: Tokens (B, T), or the residual stream (B, T, H), of a stretch of T with context parallel.
            embedded: (B, T, H) embedded tokens, after the first stage of a model with multi-token prediction.
            targets: (B, T).
            num_targets: Number of targets of the whole step, by which the loss is divided.
            documents: (B, T), or None.

        Returns:
            The streams, (B, T, H) each; in the last stage the loss, (1).
        """
        with self.autocast():
            return self._computed(x, embedded, targets, num_targets, documents)

    def _computed(
        self, x: Tensor, passed: tuple[Tensor, ...], targets: Tensor, num_targets: int, documents: Tensor | None
    ) -> Tensor | tuple[Tensor, ...]:
        model: LanguageModel = vars(self)["model"]
        auxiliary = Auxiliary() if self.neighbors is None else None
        # As tokens, the targets have the right shape.
        context = model.context(targets, documents=documents, auxiliary=auxiliary, targets=targets)
        if self.neighbors is not None:
            context = ContextOfStretch(context, targets, self.neighbors)
            targets = targets[:, context.stretch]
            x = x[:, context.stretch] if self.is_first else x
        if self.is_first:
            x = model.embed(x, context)
            passed = (x,) * (self.num_streams - 1)
        embedded = passed[0] if passed else x
        for block in self.blocks:
            x = block(x, context)
        if self.is_last:
            sums = model.loss_of_stream(x, embedded, targets, context)
            self.measured.append(_detached(sums))
            return torch.stack([_closed(sums.total, context) / num_targets])  # no view, of which FSDP warns
        assert context.auxiliary is not None
        zero = torch.zeros((), device=x.device)
        sums = with_auxiliary(LossSums(zero, zero, (targets != IGNORED).sum()), context.auxiliary)
        self.measured.append(_detached(sums))
        losses = [sums.total / num_targets] if sums.total.requires_grad else []
        sent = self._sent(_closed(x, context), losses), *(self._sent(stream, []) for stream in passed)
        return sent if len(sent) > 1 else sent[0]

    def _sent(self, stream: Tensor, losses: Sequence[Tensor]) -> Tensor:
        """A stream as torch's schedules send it: neither a view nor an input, and with a gradient."""
        stream = Attach.apply(stream.to(self.dtype).contiguous(), *losses)
        if torch.is_grad_enabled() and not stream.requires_grad:  # every parameter so far is frozen
            stream.requires_grad_()
        return stream


class Attach(torch.autograd.Function):
    """`Attach.apply(x, *losses)` is x; the backward pass minimizes the losses () besides what depends on x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *losses: Tensor) -> Tensor:
        ctx.ones = [torch.ones_like(loss) for loss in losses]
        return x.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return gradient, *ctx.ones


def _closed(output: Tensor, context: Context) -> Tensor:
    """A result of a pass, with the gradients of what the mixers sent to other stretches of the sequences."""
    return context.close(output) if isinstance(context, ContextOfStretch) else output


def _detached(sums: LossSums) -> LossSums:
    return sums._replace(total=sums.total.detach())
