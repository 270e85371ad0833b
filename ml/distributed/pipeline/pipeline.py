"""The pipeline of a run: gradients of a step, and losses without gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from ml.distributed.fsdp import weights_changed
from ml.distributed.pipeline.stage import Stage
from ml.distributed.schedules import PipelineSchedule
from ml.distributed.shards import local
from ml.distributed.stretch import LossOfStretch
from ml.layers.loss import LossSums
from ml.models.language_model import LanguageModel
from ml.targets import IGNORED

if TYPE_CHECKING:
    from torch.distributed.pipelining import PipelineStage


class Pipeline:
    """The stages of this rank, and the exchange with the ranks before and after it.

    `model.loss` is replaced by `loss`, so that validation goes through all stages. Where it was the loss of a stretch
    (context parallel), the stages compute that stretch.

    Args:
        model: The model, cut into `stages`.
        stages: The stages of this rank, after FSDP.
        schedule: The schedule.
        axis: One-dimensional mesh, in the order of the stages.
        time_shards: Number of ranks over which the residual stream is divided along time (sequence parallel).
    """

    def __init__(
        self,
        model: LanguageModel,
        stages: Sequence[Stage],
        schedule: PipelineSchedule,
        axis: DeviceMesh,
        time_shards: int = 1,
    ):
        self.model = model
        self.stages = {stage.index: stage for stage in stages}
        self.schedule = schedule
        self.time_shards = time_shards
        self.group = axis.get_group()
        self.rank, self.num_ranks = axis.get_local_rank(), axis.size()
        self.num_stages = schedule.num_stages(self.num_ranks)
        if isinstance(model.loss, LossOfStretch):
            self.time_shards = model.loss.neighbors.size  # which alone divides the stream along time then
            for stage in stages:
                stage.neighbors = model.loss.neighbors
        self._started: tuple[tuple[int, ...], Any] | None = None
        vars(model)["loss"] = self.loss

    def gradients(
        self,
        micro_batches: Sequence[Mapping[str, Tensor]],
        num_targets: int,
        autocast: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> list[LossSums]:
        """Adds the gradients of a step to `parameter.grad`; a collective call.

        Args:
            micro_batches: The inputs of the model's loss, of equal shapes: `tokens`, `targets`, `documents`.
            num_targets: Number of targets of the step on all data ranks, by which the loss is divided.
            autocast: Returns the context manager of a forward pass.

        Returns:
            What the stages of this rank measured of each micro-batch. The sums over the ranks of the pipeline are those
            of one process; the loss is measured in the last stage, each router in the stage that has it.

        Raises:
            ValueError: The micro-batches cannot be scheduled.
        """
        inputs = {name: torch.cat([batch[name] for batch in micro_batches]) for name in micro_batches[0]}
        tokens = inputs.pop("tokens")
        schedule = self._schedule(micro_batches)
        for stage in self.stages.values():
            stage.autocast = autocast
            stage.measured.clear()
        args = (tokens,) if 0 in self.stages else ()
        target = inputs["targets"] if self.num_stages - 1 in self.stages else None
        schedule.step(*args, target=target, return_outputs=False, num_targets=num_targets, **inputs)
        self._sum_tied_gradient()
        return [sums for stage in self.stages.values() for sums in stage.measured]

    @torch.no_grad()
    def loss(self, tokens: Tensor, targets: Tensor, documents: Tensor | None = None) -> LossSums:
        """As `LanguageModel.loss`, without gradients; a collective call.

        Returns:
            The sums over the targets on the rank of the last stage, zeros on the others.
        """
        streams: tuple[Tensor, ...] = (tokens,)
        for index, stage in sorted(self.stages.items()):
            if index > 0 and index - 1 not in self.stages:
                streams = self._received(index - 1, stage, tokens)
            stage.autocast = contextlib.nullcontext  # the caller's is in effect
            stage.measured.clear()
            output = stage(*streams, targets=targets, num_targets=1, documents=documents)
            streams = output if isinstance(output, tuple) else (output,)
            weights_changed(stage)  # as they may before the next pass, and no module of the model is the stage's unit
            if index + 1 < self.num_stages and index + 1 not in self.stages:
                for stream in streams:
                    dist.send(stream, group=self.group, group_dst=self.schedule.rank_of(index + 1, self.num_ranks))
        if self.num_stages - 1 in self.stages:
            return self.stages[self.num_stages - 1].measured.pop()
        zero = torch.zeros((), device=tokens.device)
        return LossSums(zero, zero, torch.zeros_like((targets != IGNORED).sum()))

    def _received(self, source: int, stage: Stage, tokens: Tensor) -> tuple[Tensor, ...]:
        shape = self._stream_shape(tokens)
        streams = [torch.empty(shape, dtype=stage.dtype, device=tokens.device) for _ in range(stage.num_streams)]
        for stream in streams:
            dist.recv(stream, group=self.group, group_src=self.schedule.rank_of(source, self.num_ranks))
        return tuple(streams)

    def _stream_shape(self, tokens: Tensor) -> tuple[int, int, int]:
        batch_size, length = tokens.shape
        is_divided = length % self.time_shards == 0
        return batch_size, length // self.time_shards if is_divided else length, self.model.hidden_size

    def _schedule(self, micro_batches: Sequence[Mapping[str, Tensor]]) -> Any:
        """Torch's schedule for micro-batches of one shape; the one of the previous step where it fits."""
        tokens = micro_batches[0]["tokens"]
        shape = (len(micro_batches), *tokens.shape)
        if any(batch["tokens"].shape != tokens.shape for batch in micro_batches):
            raise ValueError(
                "Mesh.pipeline needs micro-batches of one size: Trainer.micro_batch_size must divide the "
                "sequences of a data rank"
            )
        if self._started is None or self._started[0] != shape:
            name = type(self.schedule).__name__
            if problem := self.schedule.misfit(len(micro_batches), self.num_ranks):
                raise ValueError(f"{name} {problem}; see Trainer.micro_batch_size")
            stages = [self._static(stage, tokens) for _, stage in sorted(self.stages.items())]
            self._started = shape, self.schedule.start(stages, len(micro_batches))
        return self._started[1]

    def _static(self, stage: Stage, tokens: Tensor) -> PipelineStage:
        """A stage with the shapes that it receives and returns; torch would run it once more to infer them."""
        from torch.distributed.pipelining import PipelineStage

        shape = self._stream_shape(tokens)
        stream = torch.empty(shape, dtype=stage.dtype, device="meta", requires_grad=True)
        streams = (stream,) * stage.num_streams
        loss = torch.empty(1, device="meta", requires_grad=True)
        return PipelineStage(
            stage,
            stage.index,
            self.num_stages,
            tokens.device,
            input_args=(tokens.to("meta"),) if stage.is_first else streams,
            output_args=(loss,) if stage.is_last else streams,
            group=self.group,
        )

    def _sum_tied_gradient(self) -> None:
        """Sums the gradient of a tied weight over the first and the last stage, to the same bits in both."""
        ends = self.schedule.ranks_of_ends(self.num_ranks)
        if not self.model.tie_word_embeddings or ends[0] == ends[1] or self.rank not in ends:
            return
        weight = self.model.tied_weight
        if weight is None or weight.grad is None:
            return
        gradient = local(weight.grad)
        peer = ends[1] if self.rank == ends[0] else ends[0]
        other = torch.empty_like(gradient)
        exchange = [
            dist.P2POp(dist.isend, gradient, group=self.group, group_peer=peer),
            dist.P2POp(dist.irecv, other, group=self.group, group_peer=peer),
        ]
        for work in dist.batch_isend_irecv(exchange):
            work.wait()
        gradient += other
