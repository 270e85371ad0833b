"""Frozen model beside the one that is trained, which its loss is computed with."""

import abc
from typing import Any

from torch import nn

from ml.data import Batch
from ml.models import LanguageModel


class Guide(abc.ABC):
    """A teacher of distillation, or the reference of preferences.

    Attributes:
        model: The frozen model; None where it is the one that is trained.
    """

    model: nn.Module | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights of the frozen model, which every process holds whole."""
        return 0 if self.model is None else sum(parameter.nbytes for parameter in self.model.parameters())

    @abc.abstractmethod
    def inputs(self, batch: Batch, model: LanguageModel) -> dict[str, Any]:
        """Returns further arguments of the model's loss.

        Args:
            batch: The micro-batch, on the device.
            model: The model that is trained.
        """

    def num_units(self, batch: Batch) -> int:
        """Returns the number of targets or pairs over which the loss is a mean."""
        return batch.num_targets
