"""Length of a run: a number of steps, or a number of epochs of the data."""

import math
from fractions import Fraction
from typing import NamedTuple, Self

from ml.config import require
from ml.layers.checks import positive_float

_PLACEHOLDER = 10**9  # steps of a run whose data is not open yet: more than any warmup or window takes


class RunLength(NamedTuple):
    """Length of a run.

    Attributes:
        num_steps: Number of optimizer steps; a placeholder while it is unknown.
        num_epochs: Number of epochs that it makes; None for a number of steps.
        epoch_sequences: Number of sequences in an epoch; None if unknown or not needed.
    """

    num_steps: int
    num_epochs: float | None = None
    epoch_sequences: int | None = None

    @classmethod
    def of(cls, num_steps: int | None, num_epochs: float | None, epoch_sequences: int | None, batch_size: int) -> Self:
        """Computes the length from the parameters of `Trainer`.

        Args:
            num_steps: Number of optimizer steps, or None.
            num_epochs: Number of epochs, or None; exactly one of the two is set.
            epoch_sequences: Number of sequences in an epoch; None if unknown.
            batch_size: Sequences per step.

        Raises:
            ValueError: Both or none are set, or one is not positive.
        """
        if num_epochs is None:
            require(num_steps is not None, "num_steps", "must be set, or Trainer.num_epochs")
            require(num_steps is None or num_steps > 0, "num_steps", f"must be positive, not {num_steps}")
            require(epoch_sequences is None, "epoch_sequences", "goes with Trainer.num_epochs")
            return cls(num_steps or _PLACEHOLDER)
        message = f"and num_steps ({num_steps}) cannot both be set: set Trainer.num_steps = None"
        require(num_steps is None, "num_epochs", message)
        num_epochs = positive_float("num_epochs", num_epochs)
        fits = epoch_sequences is None or epoch_sequences > 0
        require(fits, "epoch_sequences", f"must be positive, not {epoch_sequences}")
        found = cls(_PLACEHOLDER, num_epochs, epoch_sequences)
        return found.with_epoch(epoch_sequences, batch_size) if epoch_sequences and fits else found

    @property
    def is_known(self) -> bool:
        """True if the number of steps is known."""
        return self.num_epochs is None or self.epoch_sequences is not None

    def with_epoch(self, epoch_sequences: int, batch_size: int) -> Self:
        """Returns the length with the steps that `num_epochs` makes; unchanged for a number of steps.

        Args:
            epoch_sequences: Number of sequences in an epoch.
            batch_size: Sequences per step.
        """
        if self.num_epochs is None:
            return self
        found = self._replace(epoch_sequences=epoch_sequences)
        return found._replace(num_steps=found.steps_after(0, 0, batch_size))

    def steps_after(self, step: int, sequences: int, batch_size: int) -> int:
        """Returns the number of steps of a run of `num_epochs` that has taken some.

        Args:
            step: The steps taken.
            sequences: The sequences of these steps.
            batch_size: Sequences per later step.
        """
        assert self.num_epochs is not None
        assert self.epoch_sequences is not None
        wanted = Fraction(repr(self.num_epochs)) * self.epoch_sequences  # as it is written: 0.1 is a tenth
        return max(step, 1, step + math.ceil((wanted - sequences) / max(batch_size, 1)))
