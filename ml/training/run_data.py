"""Open data of a run: the training dataset and the validation sets."""

import hashlib
from typing import Any, NamedTuple

from ml.data import DataError, Dataset
from ml.training.evaluation.validation_sets import ValidationSet

_NUM_FIRST = 4  # sequences whose content shows the order


class RunData(NamedTuple):
    """All data that a run reads.

    Attributes:
        training: The training dataset, with its held-out split.
        validation_sets: The validation sets, in the order of the configuration.
    """

    training: Dataset
    validation_sets: list[ValidationSet]

    @property
    def sha256(self) -> str:
        """Hash of the training data; a run resumes with equal data only. Separate validation data changes no result."""
        return self.training.sha256

    def order_sha256(self) -> str | None:
        """Reads and hashes the first training sequences; equal data in another order or length has another hash.

        Returns:
            The hash; None if they cannot be read.
        """
        try:
            first = self.training.batch(0, _NUM_FIRST)
        except DataError:
            return None
        return hashlib.sha256(first.tokens.numpy().tobytes()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Describes the training data and the separate validation data, as JSON values for `environment.json`."""
        own = {one.name or "validation": one.dataset.describe() for one in self._own_sets()}
        return {**self.training.describe(), **({"validation_sets": own} if own else {})}

    def _own_sets(self) -> list[ValidationSet]:
        return [one for one in self.validation_sets if one.dataset is not self.training]
