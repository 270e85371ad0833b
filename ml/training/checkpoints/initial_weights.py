"""Contract of the initial weights of a new run."""

import abc
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from ml.data.tokenizers import Tokenizer
from ml.data.tokenizers.identity import fits, require_fit
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

    @property
    def run(self) -> str | None:
        """Folder of the run that has the weights; None if they are not of a run."""
        return None

    def tokenizer(self) -> Tokenizer | None:
        """Returns the tokenizer of the weights, for data without its own; None if it is not known.

        Raises:
            DataError: It cannot be read.
        """
        return None

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
        place: Their place, for messages, such as "the run runs/base".
    """

    continues: FoundCheckpoint | None = None
    place: str = "the initial weights"

    def fit_tokenizer(self, tokenizer: Tokenizer, earlier: Tokenizer) -> None:
        """Compares the tokenizer of the weights with that of the run, before `check` and `load`.

        Args:
            tokenizer: The tokenizer of the training data, which may have further special tokens.
            earlier: The tokenizer of the weights.

        Raises:
            DataError: They are different tokenizers; the message names both.
        """
        if not fits(earlier, tokenizer):
            require_fit(tokenizer, earlier, "the data", self.place)

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

    def given(self, model: nn.Module) -> frozenset[str]:
        """Returns the names of the parameters that `load` sets whole, which are not drawn before.

        Args:
            model: The whole model, on the meta device.

        Raises:
            RunError: The weights belong to another model.
        """
        return frozenset()

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
