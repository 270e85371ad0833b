"""A stage of a pipeline alone, whose neighbors do not exist."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ml.distributed.estimate.live_memory import LiveMemory
from ml.distributed.pipeline.pipeline import Pipeline
from ml.distributed.shards import local
from ml.layers.loss import LossSums


class PlannedStage(Pipeline):
    """Computes the only stage of this rank on one micro-batch after another, and sends nothing.

    The order of a schedule has no effect on how often weights are gathered: a forward pass frees them, and torch's
    schedules keep them after a backward pass, so that every pass gathers them but those that follow a backward pass.

    Args:
        pipeline: The pipeline of the rank, with one stage.
        live: Memory of the step.

    Attributes:
        activations: Bytes that the forward pass of each micro-batch leaves, without the streams that it receives.
        stream_bytes: Bytes of the streams of a micro-batch between two stages.
    """

    def __init__(self, pipeline: Pipeline, live: LiveMemory):
        vars(self).update(vars(pipeline))
        (self.stage,) = pipeline.stages.values()
        self.live = live
        self.activations: list[int] = []
        self.stream_bytes = 0

    def gradients(
        self,
        micro_batches: Sequence[Mapping[str, Tensor]],
        num_targets: int,
        autocast: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> list[LossSums]:
        """As `Pipeline.gradients`, with streams and gradients of any value from the stages before and after."""
        self.stage.autocast = autocast
        self.stage.measured.clear()
        for batch in micro_batches:
            others = dict(batch)
            tokens = others.pop("tokens")
            received = (tokens,) if self.stage.is_first else self._streams(tokens)
            before = self.live.activations()
            output = self.stage(*received, num_targets=num_targets, **others)
            self.activations.append(self.live.activations() - before)
            outputs = output if isinstance(output, tuple) else (output,)
            self.stream_bytes = sum(stream.nbytes for stream in (outputs if self.stage.is_first else received))
            given = tuple(torch.ones_like(one) for one in outputs)
            inputs = {"stage_output": outputs, "output_grads": given, "input_values": received}
            of_torch = self._static(self.stage, tokens)
            of_torch.backward_maybe_with_nosync("full", inputs)
        of_torch.perform_reduce_grad(1)
        return list(self.stage.measured)

    @property
    def tied_bytes(self) -> int:
        """Bytes of the gradient of a tied weight, which the first and the last stage exchange in a step."""
        is_end = self.stage.is_first or self.stage.is_last
        weight = self.model.tied_weight if is_end and self.model.tie_word_embeddings else None
        return 0 if weight is None or not weight.requires_grad else local(weight).nbytes

    def _streams(self, tokens: Tensor) -> tuple[Tensor, ...]:
        shape = self._stream_shape(tokens)
        streams = (torch.empty(shape, dtype=self.stage.dtype) for _ in range(self.stage.num_streams))
        return tuple(stream.requires_grad_() for stream in streams)
