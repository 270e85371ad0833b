"""Records of logged steps, the lines of `metrics.jsonl`."""

import math
from typing import Any

from ml.training.metrics.router_load import load_balance
from ml.training.metrics.throughput import Throughput
from ml.training.state import TrainState
from ml.training.step import StepResult
from ml.training.trainer import Trainer


class Records:
    """Collects the metrics of a step."""

    def __init__(self, trainer: Trainer, state: TrainState, throughput: Throughput, epoch_sequences: int):
        self._trainer = trainer
        self._state = state
        self._throughput = throughput
        self._epoch_sequences = epoch_sequences
        self._groups = trainer.groups()

    def of(self, result: StepResult, seconds: float) -> dict[str, Any]:
        """Returns the record of the current step; synchronizes with the device. A collective call.

        Args:
            result: The result of the step.
            seconds: Duration of the run so far.
        """
        state, trainer = self._state, self._trainer
        record = {
            "step": state.step,
            "tokens": state.tokens,
            "epoch": state.sequences / self._epoch_sequences,
            "loss": result.loss.item(),
            "grad_norm": result.grad_norm.item(),
            "learning_rate": trainer.learning_rate(state.step),
            **self._throughput.read(),
            "seconds": seconds,
            **{name: part.item() for name, part in result.parts.items()},
        }
        if result.loads:
            record["routers"] = {name: load_balance(load) for name, load in result.loads.items()}
        if state.skip_step is not None:
            record["skipped_steps"] = state.skip_step.skipped.item()
        if trainer.norms is not None:
            record |= trainer.norms.measure(state, result.grad_norms, self._groups)
        return finite(record)


def finite(record: Any) -> Any:
    """Replaces NaN and infinity by None; the metrics of a skipped step may contain them."""
    if isinstance(record, dict):
        return {name: finite(value) for name, value in record.items()}
    return None if isinstance(record, float) and not math.isfinite(record) else record
