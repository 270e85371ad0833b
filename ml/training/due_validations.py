"""Validation of the weights in training and of their running average."""

from collections.abc import Callable, Sequence

from ml.distributed import Layout
from ml.training.evaluation.validation_sets import ValidationSet
from ml.training.guide import Guide
from ml.training.state import TrainState
from ml.training.trainer import Trainer


class DueValidations:
    """Measures the validation sets of a run after the steps in which they are due.

    Args:
        trainer: The settings of the run.
        sets: The open validation sets.
        state: The training state.
        layout: The mesh of the processes.
        guide: The teacher or the reference of the loss; None without one.
        stops: Returns whether this process was requested to stop.
    """

    def __init__(
        self,
        trainer: Trainer,
        sets: Sequence[ValidationSet],
        state: TrainState,
        layout: Layout,
        guide: Guide | None,
        stops: Callable[[], bool],
    ):
        self.trainer = trainer
        self.sets = sets
        self.state = state
        self.layout = layout
        self.guide = guide
        self.stops = stops

    @property
    def due(self) -> list[ValidationSet]:
        """The validation sets that are due after the current step."""
        step, num_steps = self.state.step, self.trainer.num_steps
        return [one for one in self.sets if one.validation.is_due(step, num_steps)]

    def measure(self) -> dict[str, float] | None:
        """Validates the weights and their running average, if it has been updated, on the sets that are due.

        Returns:
            The metrics, or None if a request to stop interrupted the validation.
        """
        due = self.due
        measured = self._measured_on(due)
        average = self.state.weight_average
        if not due or measured is None or average is None or not average.is_validated(self.state.step):
            return measured
        with average.in_place_of_weights(self.state.model):
            of_average = self._measured_on(due)
        return None if of_average is None else measured | {f"average_{name}": x for name, x in of_average.items()}

    def _measured_on(self, sets: Sequence[ValidationSet]) -> dict[str, float] | None:
        trainer = self.trainer
        where = (trainer.micro_batch_size, trainer.precision, self.layout.device)
        record: dict[str, float] = {}
        for one in sets:
            result = one.validation.measure(self.state.model, one.dataset, *where, self.stops, self.layout, self.guide)
            if result is None:
                return None
            record |= one.record(result)
        return record
