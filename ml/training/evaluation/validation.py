"""How well the model predicts text that it was not trained on."""

import inspect
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from ml.config import child, configurable, require
from ml.config.configurable import reference_to
from ml.data import Data, Dataset
from ml.training.precision import Precision


class ValidationResult(NamedTuple):
    """The same number in two units: the second can be compared across tokenizers."""

    loss: float  # nats per token
    bits_per_byte: float


@configurable
class Validation:
    """Measures the loss on held-out text, the same text each time.

    Args:
        every: Steps between two measurements; one more is made at the end. None measures at the end only.
        num_tokens: How many tokens of the held-out text are predicted; None for all of it, which is what a set with a
            name does where nothing else is said.
        data: What is measured, all of it; None is what the data of the run holds out. What a set is made of holds out
            itself (a mixture) is what is measured of it.
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
        # Not the scope `data`: what is set there for the data of the run alone would win over the name of the set.
        self.own_data = None if data is None else child("own_data", data, **_whole(data))

    def is_due(self, step: int, num_steps: int) -> bool:
        return step == num_steps or (self.every is not None and step % self.every == 0)

    @torch.no_grad()
    def measure(
        self,
        model: nn.Module,
        dataset: Dataset,
        batch_size: int,
        precision: Precision,
        device: torch.device,
        stop: Callable[[], bool] = lambda: False,
    ) -> ValidationResult | None:
        """Mean loss over the held-out tokens, each predicted once, without dropout; the model is then in training.

        stop: is asked before each batch; once it says yes there is no result.
        """
        nats = torch.zeros((), dtype=torch.float64, device=device)
        num_targets = 0
        model.eval()
        try:
            for batch in dataset.validation_batches(batch_size, self.num_tokens):
                if stop():
                    return None
                batch = batch.to(device)
                with precision.autocast(device):
                    nats += model.loss(**batch.inputs).cross_entropy
                num_targets += batch.num_targets
        finally:
            model.train()
        total = nats.item()
        num_bytes = dataset.validation_bytes(self.num_tokens)
        return ValidationResult(total / num_targets, total / math.log(2) / num_bytes)


def _whole(data: Callable[..., Data]) -> dict[str, float]:
    """The argument by which `data` holds out all that it has, if it takes one."""
    reference = reference_to(data)
    parameters = reference.configurable.parameters if reference else inspect.signature(data).parameters
    return {"validation_fraction": 1.0} if "validation_fraction" in parameters else {}
