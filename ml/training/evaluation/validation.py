"""Validation loss on held-out text."""

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from ml.config import child, configurable, require
from ml.config.configurable import reference_to
from ml.data import Batch, Data, DataError, Dataset
from ml.distributed import Layout, World
from ml.models import LanguageModel
from ml.targets import IGNORED
from ml.training.guide import Guide
from ml.training.precision import Precision

_ONE_PROCESS = Layout()


class ValidationResult(NamedTuple):
    """Validation loss in two units.

    Attributes:
        loss: Nats per token.
        bits_per_byte: Bits per UTF-8 byte; comparable across tokenizers.
    """

    loss: float
    bits_per_byte: float


class PreferenceResult(NamedTuple):
    """Validation loss of pairs of answers.

    Attributes:
        loss: Loss per pair.
        reward_accuracy: Fraction of the pairs whose preferred answer has the larger reward.
        reward_margin: Mean difference of the rewards.
    """

    loss: float
    reward_accuracy: float
    reward_margin: float


@configurable
class Validation:
    """Measures the loss on the same held-out text each time.

    Args:
        every: Steps between two validations. The last step always validates; None validates there only.
        num_tokens: Number of held-out tokens that are predicted; None for all. A named set defaults to None.
        data: Separate validation data, all of which is measured, except that the components of a mixture are measured
            on their own held-out splits. None for the held-out split of the training data.
    """

    def __init__(
        self,
        every: int | None = 250,
        num_tokens: int | None = 2**17,
        data: Callable[..., Data] | None = None,
    ):
        require(every is None or every > 0, "every", f"must be positive, not {every}")
        require(num_tokens is None or num_tokens > 0, "num_tokens", f"must be positive, not {num_tokens}")
        self.every = every
        self.num_tokens = num_tokens
        # Not the scope `data`: bindings there for the training data would take precedence over the name of the set.
        self.own_data = None if data is None else child("own_data", data, **_whole(data))

    def is_due(self, step: int, num_steps: int) -> bool:
        """Returns True if a run of `num_steps` steps validates after `step`."""
        return step == num_steps or (self.every is not None and step % self.every == 0)

    @torch.no_grad()
    def measure(
        self,
        model: LanguageModel,
        dataset: Dataset,
        batch_size: int,
        precision: Precision,
        device: torch.device,
        stop: Callable[[], bool] = lambda: False,
        layout: Layout = _ONE_PROCESS,
        guide: Guide | None = None,
    ) -> ValidationResult | PreferenceResult | None:
        """Measures the mean loss over the held-out tokens without dropout; leaves the model in training mode.

        A collective call. Each data rank measures a part; every process runs as many forward passes as the others.

        Args:
            model: The model.
            dataset: The dataset whose held-out split is measured.
            batch_size: Sequences per forward pass.
            precision: The precision of the forward pass.
            device: The device of the model.
            stop: Called before each batch; True in any process interrupts the validation of all.
            layout: The mesh and the place of this process in it.
            guide: The reference of preferences, for a dataset of pairs; others are measured without it.

        Returns:
            The result, or None if interrupted.
        """
        guide = guide if dataset.has_pairs else None
        measured = torch.zeros(
            1 if guide is None else len(PreferenceResult._fields), dtype=torch.float64, device=device
        )
        num_units = 0
        model.eval()
        try:
            part = dataset.validation_part(batch_size, self.num_tokens, layout.data_rank, layout.num_data_ranks)
            for batch in _in_step(part, _empty(dataset), layout.world, stop):
                if batch is None:
                    return None
                batch = batch.ready_for(device).to(device)
                with precision.autocast(device):
                    losses = model.loss(**batch.inputs, **({} if guide is None else guide.inputs(batch, model)))
                wanted = [losses.parts[name] for name in PreferenceResult._fields[1:]] if guide else []
                measured += torch.stack([losses.cross_entropy, *wanted]).double()
                num_units += batch.num_targets if guide is None else guide.num_units(batch)
        finally:
            model.train()
        totals = layout.sum(measured).tolist()
        (num_units,) = layout.world.host_sum([num_units if layout.reads_first else 0])
        if guide is not None:
            return PreferenceResult(*(total / num_units for total in totals))
        num_bytes = layout.world.first(lambda: dataset.validation_bytes(self.num_tokens))
        return ValidationResult(totals[0] / num_units, totals[0] / math.log(2) / num_bytes)


def _in_step(batches: Iterator[Batch], empty: Batch, world: World, stop: Callable[[], bool]) -> Iterator[Batch | None]:
    """Yields as many batches in every process, and ends with None in all of them once `stop` is true in one.

    Sharded weights are gathered in every forward pass, so that no process may run more of them than another.

    Args:
        batches: The batches of this process.
        empty: A batch without targets, for a process that has no batch left.
        world: The processes.
        stop: Called before each batch.

    Raises:
        DataError: This process cannot read a batch.
        OtherProcessFailed: Another process cannot.
    """
    while True:
        read = _next(batches)
        flags = [read is not None, stop(), isinstance(read, DataError)]
        num_left, num_stopped, num_failed = world.host_sum([int(flag) for flag in flags])
        if num_failed:
            world.require_none(read if isinstance(read, DataError) else None)
        if num_stopped:
            yield None
        if num_stopped or not num_left:
            return
        yield read if isinstance(read, Batch) else empty


def _next(batches: Iterator[Batch]) -> Batch | DataError | None:
    """Returns the next batch, the error that prevents it, or None after the last one."""
    try:
        return next(batches, None)
    except DataError as error:
        return error


def _empty(dataset: Dataset) -> Batch:
    """Returns a sequence without targets."""
    tokens = np.zeros((1, dataset.sequence_length), dtype=np.int64)
    batch = Batch.of(tokens, np.full_like(tokens, IGNORED))
    return batch.with_documents() if dataset.separates_documents else batch


def _whole(data: Callable[..., Data]) -> dict[str, Any]:
    """Returns the argument with which `data` holds out everything, if it takes one."""
    reference = reference_to(data)
    parameters = reference.configurable.parameters if reference else inspect.signature(data).parameters
    return {"validation_fraction": 1.0} if "validation_fraction" in parameters else {}
