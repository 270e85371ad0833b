"""The open data of a run: the dataset that it trains on and its validation sets."""

import hashlib
from typing import Any, NamedTuple

from ml.data import Dataset
from ml.training.evaluation.validation_sets import ValidationSet


class RunData(NamedTuple):
    """All data that a run reads.

    Attributes:
        training: The dataset that the batches come from, and the held-out split of it.
        validation_sets: The sets that the model is measured on, in the order of the configuration.
    """

    training: Dataset
    validation_sets: list[ValidationSet]

    @property
    def sha256(self) -> str:
        """One hash of all data; a run resumes with equal data only."""
        own = [(one.name, one.dataset.sha256) for one in self._own_sets()]
        if not own:
            return self.training.sha256
        return hashlib.sha256(repr([self.training.sha256, *own]).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """The training data and the validation sets with separate data, as JSON for `environment.json`."""
        own = {one.name or "validation": one.dataset.describe() for one in self._own_sets()}
        return {**self.training.describe(), **({"validation_sets": own} if own else {})}

    def _own_sets(self) -> list[ValidationSet]:
        return [one for one in self.validation_sets if one.dataset is not self.training]
