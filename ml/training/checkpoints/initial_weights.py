"""Contract of the initial weights of a new run."""

import abc
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from ml.distributed import ALONE, World
from ml.training.checkpoints.reference import FoundCheckpoint

if TYPE_CHECKING:
    from ml.training.run_data import RunData
    from ml.training.state import TrainState


class InitialWeights(abc.ABC):
    """Source of the weights that a new run starts from, `Trainer.initial_weights`.

    A run records which weights these were, so that it can be repeated: before anything is written, the parameters that
    `pins` returns are set.
    """

    @abc.abstractmethod
    def pins(self, recorded: Mapping[str, Any]) -> dict[str, Any]:
        """Returns values of parameters that identify the weights and are not set yet; empty if all are.

        Args:
            recorded: The parameters of these settings in the run folder that is resumed; empty for a new run.

        Raises:
            RunError: The weights cannot be found.
        """

    def adopt(self, earlier: "InitialWeights") -> None:
        """Takes over what `pins` of these settings, before they were set, has found: nothing is verified twice."""
        return  # settings that verify nothing have nothing to take over

    @abc.abstractmethod
    def open(self, world: World = ALONE) -> "StartingPoint":
        """Finds the weights and verifies them; a collective call.

        Raises:
            RunError: They cannot be found, or are damaged.
        """


class StartingPoint(abc.ABC):
    """Initial weights that were found.

    Attributes:
        continues: The checkpoint whose training continues with the step after it; None where training begins.
    """

    continues: FoundCheckpoint | None = None

    @abc.abstractmethod
    def check(self, model: nn.Module, num_steps: int, world: World = ALONE) -> list[str]:
        """Compares the weights with a model on the meta device.

        Args:
            model: The model.
            num_steps: Number of steps of the run.
            world: The processes that hold the model.

        Returns:
            The lines that describe the start.

        Raises:
            RunError: The weights belong to another model.
        """

    @abc.abstractmethod
    def load(self, state: "TrainState", data: "RunData", say: Callable[[str], None]) -> None:
        """Loads the weights into a new training state, with all else that continues; a collective call.

        Args:
            state: The state before step 1, changed in place.
            data: The open data of the run.
            say: Receives the log lines.

        Raises:
            RunError: The weights belong to another model.
        """

    def kept_files(self) -> Mapping[str, bytes]:
        """Returns files that the run folder keeps for an export, by name; none by default."""
        return {}
