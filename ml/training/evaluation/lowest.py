"""The lowest value of a validation metric so far."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class Lowest:
    """The lowest value of a metric over the validations of a run.

    Attributes:
        metric: Name of the metric, as in `metrics.jsonl`.
        min_improvement: A value counts as lower only if it is lower by more than this.
        value: The lowest value; None before the first validation, or while no value was finite.
        step: The step at which it was measured; 0 before the first one.
        num_since: Number of validations since then.
    """

    metric: str
    min_improvement: float = 0.0
    value: float | None = None
    step: int = 0
    num_since: int = 0

    def update(self, record: Mapping[str, Any]) -> None:
        """Compares the value in a record of `metrics.jsonl`, if there is one."""
        if self.metric not in record:
            return
        value = record[self.metric]
        is_finite = value is not None and math.isfinite(value)
        if is_finite and (self.value is None or value < self.value - self.min_improvement):
            self.value, self.step, self.num_since = value, record["step"], 0
        else:
            self.num_since += 1

    def reset(self) -> None:
        """Forgets all validations so far."""
        self.value, self.step, self.num_since = None, 0, 0

    def as_json(self) -> dict[str, Any]:
        """Returns all attributes, for a checkpoint."""
        return dataclasses.asdict(self)

    def restore(self, saved: Mapping[str, Any] | None) -> None:
        """Continues from a checkpoint, unless it is of another metric, or of none.

        Args:
            saved: What `as_json` returned.
        """
        if saved is not None and (saved["metric"], saved["min_improvement"]) == (self.metric, self.min_improvement):
            self.value, self.step, self.num_since = saved["value"], saved["step"], saved["num_since"]
