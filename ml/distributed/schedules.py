"""Schedules of a pipeline: the order in which a rank computes its stages on the micro-batches of a step."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ml.config import configurable, require
from ml.layers.checks import positive

if TYPE_CHECKING:
    from torch.distributed.pipelining import PipelineStage


class PipelineSchedule(abc.ABC):
    """Base class of schedules. Micro-batches are those of `Trainer.micro_batch_size`.

    Attributes:
        stages_per_rank: Number of stages of each rank.
        embeddings_as_blocks: Number of blocks that the embeddings count for.
        head_as_blocks: Number of blocks that the head counts for.
        splits_backward: Whether gradients of activations and of weights are computed at different times.
        of_torch: Name of the schedule in `torch.distributed.pipelining`.
    """

    stages_per_rank: int
    splits_backward: bool = False
    of_torch: str

    def __init__(self, stages_per_rank: int, embeddings_as_blocks: int, head_as_blocks: int):
        self.stages_per_rank = positive("stages_per_rank", stages_per_rank)
        for name, number in (("embeddings_as_blocks", embeddings_as_blocks), ("head_as_blocks", head_as_blocks)):
            require(number >= 0, name, f"must not be negative: {number}")
        self.embeddings_as_blocks = embeddings_as_blocks
        self.head_as_blocks = head_as_blocks

    def num_stages(self, num_ranks: int) -> int:
        """Returns the number of stages of all ranks."""
        return num_ranks * self.stages_per_rank

    def ranks_of_ends(self, num_ranks: int) -> tuple[int, int]:
        """Returns the ranks of the first and of the last stage."""
        return self.rank_of(0, num_ranks), self.rank_of(self.num_stages(num_ranks) - 1, num_ranks)

    def stages_of(self, rank: int, num_ranks: int) -> list[int]:
        """Returns the indices of the stages of a rank, in order."""
        return [rank + turn * num_ranks for turn in range(self.stages_per_rank)]

    def rank_of(self, stage: int, num_ranks: int) -> int:
        """Returns the rank of a stage."""
        return next(rank for rank in range(num_ranks) if stage in self.stages_of(rank, num_ranks))

    @abc.abstractmethod
    def misfit(self, num_micro_batches: int, num_ranks: int) -> str | None:
        """Returns why a number of micro-batches cannot be scheduled; None where it can.

        Args:
            num_micro_batches: Number of micro-batches of a data rank in a step.
            num_ranks: `Mesh.pipeline`.
        """

    def start(self, stages: list[PipelineStage], num_micro_batches: int) -> Any:
        """Returns torch's schedule of the stages of this rank, whose last stage returns the loss."""
        from torch.distributed import pipelining  # takes half a second, and only pipelines need it

        of_torch = getattr(pipelining, self.of_torch)
        first = stages if self.stages_per_rank > 1 else stages[0]
        return of_torch(first, num_micro_batches, loss_fn=_loss, scale_grads=False)


def _loss(output: Tensor, _: Tensor) -> Tensor:
    return output.sum()


@configurable
class GPipe(PipelineSchedule):
    """All forward passes, then all backward passes (Huang et al. 2019): the activations of all micro-batches are kept.

    Args:
        embeddings_as_blocks: Number of blocks that the embeddings count for when blocks are divided over stages.
        head_as_blocks: Number of blocks that the head counts for: 2 · vocab_size · hidden_size operations of a token.
    """

    of_torch = "ScheduleGPipe"

    def __init__(self, *, embeddings_as_blocks: int = 0, head_as_blocks: int = 0):
        super().__init__(1, embeddings_as_blocks, head_as_blocks)

    def misfit(self, num_micro_batches: int, num_ranks: int) -> str | None:
        return None


@configurable
class OneForwardOneBackward(PipelineSchedule):
    """One forward pass, one backward pass (1F1B; Narayanan et al. 2019, PipeDream; Fan et al. 2021, DAPPLE): the
    activations of at most `Mesh.pipeline` micro-batches are kept.

    Args:
        embeddings_as_blocks: Number of blocks that the embeddings count for when blocks are divided over stages.
        head_as_blocks: Number of blocks that the head counts for: 2 · vocab_size · hidden_size operations of a token.
    """

    of_torch = "Schedule1F1B"

    def __init__(self, *, embeddings_as_blocks: int = 0, head_as_blocks: int = 0):
        super().__init__(1, embeddings_as_blocks, head_as_blocks)

    def misfit(self, num_micro_batches: int, num_ranks: int) -> str | None:
        if num_micro_batches >= num_ranks:
            return None
        return f"needs at least as many micro-batches as Mesh.pipeline ({num_ranks}), not {num_micro_batches}"


class _Interleaved(PipelineSchedule):
    """Base class of schedules whose ranks have several stages, `Mesh.pipeline` stages apart."""

    def misfit(self, num_micro_batches: int, num_ranks: int) -> str | None:
        rounds = max(1, num_micro_batches // num_ranks)
        if num_micro_batches % rounds == 0:
            return None
        return (
            f"needs a number of micro-batches that is a multiple of Mesh.pipeline ({num_ranks}), "
            f"not {num_micro_batches}"
        )


@configurable
class InterleavedOneForwardOneBackward(_Interleaved):
    """1F1B with several stages a rank (Narayanan et al. 2021, section 2.2): shorter bubbles, more communication.

    Args:
        stages_per_rank: Number of stages of each rank, at least 2.
        embeddings_as_blocks: Number of blocks that the embeddings count for when blocks are divided over stages.
        head_as_blocks: Number of blocks that the head counts for: 2 · vocab_size · hidden_size operations of a token.
    """

    of_torch = "ScheduleInterleaved1F1B"

    def __init__(self, *, stages_per_rank: int = 2, embeddings_as_blocks: int = 0, head_as_blocks: int = 0):
        require(stages_per_rank > 1, "stages_per_rank", f"must be at least 2, not {stages_per_rank}")
        super().__init__(stages_per_rank, embeddings_as_blocks, head_as_blocks)


@configurable
class InterleavedZeroBubble(_Interleaved):
    """Interleaved 1F1B that computes the gradients of weights in the bubbles (Qi et al. 2023, ZB1P).

    Args:
        stages_per_rank: Number of stages of each rank, at least 2.
        embeddings_as_blocks: Number of blocks that the embeddings count for when blocks are divided over stages.
        head_as_blocks: Number of blocks that the head counts for: 2 · vocab_size · hidden_size operations of a token.
    """

    splits_backward = True
    of_torch = "ScheduleInterleavedZeroBubble"

    def __init__(self, *, stages_per_rank: int = 2, embeddings_as_blocks: int = 0, head_as_blocks: int = 0):
        require(stages_per_rank > 1, "stages_per_rank", f"must be at least 2, not {stages_per_rank}")
        super().__init__(stages_per_rank, embeddings_as_blocks, head_as_blocks)


@configurable
class ZeroBubbleV(PipelineSchedule):
    """Two stages a rank in the shape of a V, with the gradients of weights in the bubbles (Qi et al. 2023, ZBV).

    The first rank has the first and the last stage. No bubbles where a forward pass, the gradient of the activations
    and that of the weights take the same time.

    Args:
        embeddings_as_blocks: Number of blocks that the embeddings count for when blocks are divided over stages.
        head_as_blocks: Number of blocks that the head counts for: 2 · vocab_size · hidden_size operations of a token.
    """

    splits_backward = True
    of_torch = "ScheduleZBVZeroBubble"

    def __init__(self, *, embeddings_as_blocks: int = 0, head_as_blocks: int = 0):
        super().__init__(2, embeddings_as_blocks, head_as_blocks)

    def stages_of(self, rank: int, num_ranks: int) -> list[int]:
        return [rank, 2 * num_ranks - 1 - rank]

    def misfit(self, num_micro_batches: int, num_ranks: int) -> str | None:
        return None
