"""Initial weights of a new run from a checkpoint of another run."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn

from ml.config import configurable, require
from ml.distributed import ALONE, World
from ml.models.adapters import adapter_weights
from ml.training.checkpoints.initial_weights import InitialWeights, StartingPoint
from ml.training.checkpoints.reference import CheckpointReference, FoundCheckpoint
from ml.training.checkpoints.weight_files import read_weights
from ml.training.run_data import RunData
from ml.training.state import TrainState

_MOST_NAMES = 5  # in a message


@configurable(neutral=["path"])
class FromRun(InitialWeights):
    """Starts a new run from a checkpoint of another one, `--init_from`.

    A run records step and hash, and finds the weights again by the hash, also in a folder that was moved.

    Args:
        path: Folder of the other run.
        step: Step of the checkpoint; None for the newest valid one, which is recorded.
        sha256: Hash of the tensors of the checkpoint; None for any, which is recorded.
        state: `'weights'` or their running `'average'`.
        may_differ: Patterns of the names of weights that may be missing or have another shape, such as `'head.*'`.
    """

    def __init__(
        self,
        *,
        path: str,
        step: int | None = None,
        sha256: str | None = None,
        state: Literal["weights", "average"] = "weights",
        may_differ: Sequence[str] = (),
    ):
        require(step is None or step > 0, "step", f"must be positive, not {step}")
        self.path = path
        self.reference = CheckpointReference(Path(path), step, sha256)
        self.state = state
        self.may_differ = tuple(may_differ)

    def pins(self, recorded: Mapping[str, Any]) -> dict[str, Any]:
        return self.reference.pins(recorded, recorded.get("path"))

    def open(self, world: World = ALONE) -> "CheckpointStart":
        return CheckpointStart(world.first(self.reference.find), self.state == "average", self.may_differ)


class CheckpointStart(StartingPoint):
    """A checkpoint of another run, to start from."""

    def __init__(self, checkpoint: FoundCheckpoint, average: bool = False, may_differ: Sequence[str] = ()):
        self.checkpoint = checkpoint
        self.average = average
        self.may_differ = may_differ

    def check(self, model: nn.Module, num_steps: int, world: World = ALONE) -> list[str]:
        return self._read(model, world)

    def load(self, state: TrainState, data: RunData, say: Callable[[str], None]) -> None:
        for line in self._read(state.model, state.layout.world):
            say(line)
        if state.weight_average is not None:
            state.weight_average.restart()

    def _read(self, model: nn.Module, world: World) -> list[str]:
        """Loads the weights into a model, unless it is on the meta device; returns the lines that describe them."""
        names = adapter_weights(model)
        kept = read_weights(self.checkpoint.path, model, names, self.may_differ, average=self.average, world=world)
        what = "the average of the weights" if self.average else "the weights"
        lines = [f"starting from {what} of {self.checkpoint}"]
        if kept:
            shown = ", ".join(kept[:_MOST_NAMES]) + (", ..." if len(kept) > _MOST_NAMES else "")
            lines.append(f"{len(kept)} weights keep their initialization: {shown}")
        return lines
