"""The lines of `metrics.jsonl`: what is said of a step."""

import math
from typing import Any

from ml.training.metrics.router_load import load_balance
from ml.training.metrics.throughput import Throughput
from ml.training.state import TrainState
from ml.training.step import StepResult
from ml.training.trainer import Trainer


class Records:
    """Makes the record of a step that was just taken."""

    def __init__(self, trainer: Trainer, state: TrainState, throughput: Throughput):
        self._trainer = trainer
        self._state = state
        self._throughput = throughput
        self._names = {module: name for name, module in state.model.named_modules()}

    def of(self, result: StepResult, seconds: float) -> dict[str, Any]:
        """Reading the loss waits for the device. `seconds` is what the run has taken so far."""
        state, trainer = self._state, self._trainer
        record = {
            "step": state.step,
            "tokens": state.tokens,
            "loss": result.loss.item(),
            "grad_norm": result.grad_norm.item(),
            "learning_rate": trainer.learning_rate(state.step),
            **self._throughput.read(),
            "seconds": seconds,
            **{name: part.item() for name, part in result.parts.items()},
        }
        if result.loads:
            record["routers"] = self._routers(result)
        if state.skip_step is not None:
            record["skipped_steps"] = state.skip_step.skipped.item()
        if trainer.norms is not None:
            record |= trainer.norms.measure(state, result.grad_norms)
        return finite(record)

    def _routers(self, result: StepResult) -> dict[str, Any]:
        """Load-balance metrics of each router, by module name."""
        return {self._names[router]: load_balance(load) for router, load in result.loads.items()}


def finite(record: Any) -> Any:
    """A record with None in the place of each number that is infinite or none, as those of a step that was skipped."""
    if isinstance(record, dict):
        return {name: finite(value) for name, value in record.items()}
    return None if isinstance(record, float) and not math.isfinite(record) else record
