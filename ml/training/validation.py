"""How well the model predicts text that it was not trained on."""

import math
from typing import NamedTuple

import torch
from torch import nn

from ml.config import configurable, require
from ml.data import DataError, Dataset
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
        num_tokens: How many tokens of the held-out text are predicted; None for all of it.
    """

    def __init__(self, every: int | None = 250, num_tokens: int | None = 2**17):
        require(every is None or every > 0, "every", f"must be positive, not {every}")
        require(num_tokens is None or num_tokens > 0, "num_tokens", f"must be positive, not {num_tokens}")
        self.every = every
        self.num_tokens = num_tokens

    def is_due(self, step: int, num_steps: int) -> bool:
        return step == num_steps or (self.every is not None and step % self.every == 0)

    def check(self, dataset: Dataset) -> None:
        """Stops before the first step rather than at the first measurement.

        Raises:
            DataError: No text was held out.
        """
        if dataset.num_validation_tokens < 1:
            raise DataError(
                "no text is held out to validate on: raise the validation_fraction of Trainer.data, "
                "or set Trainer.validation = None"
            )

    @torch.no_grad()
    def measure(
        self, model: nn.Module, dataset: Dataset, batch_size: int, precision: Precision, device: torch.device
    ) -> ValidationResult:
        """Mean loss over the held-out tokens, each predicted once, without dropout."""
        nats = torch.zeros((), dtype=torch.float64, device=device)
        num_targets = 0
        model.eval()
        for batch in dataset.validation_batches(batch_size, self.num_tokens):
            batch = batch.to(device)
            with precision.autocast(device):
                nats += model.loss(**batch.inputs).cross_entropy
            num_targets += batch.num_targets
        model.train()
        total = nats.item()
        num_bytes = dataset.validation_bytes(self.num_tokens)
        return ValidationResult(total / num_targets, total / math.log(2) / num_bytes)
