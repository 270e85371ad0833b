"""Initial weights of a new run from a checkpoint of another run."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import nn

from ml.distributed import ALONE, World
from ml.models.adapters import adapter_weights
from ml.training.checkpoints.weight_files import read_weights

_MOST_NAMES = 5  # in a message


class InitialWeights(NamedTuple):
    """A checkpoint of another run whose weights a new run starts from.

    Attributes:
        checkpoint: The folder of the checkpoint.
        may_differ: Patterns of weight names that may be missing from the checkpoint or have another shape.
    """

    checkpoint: Path
    may_differ: tuple[str, ...] = ()

    def read(self, model: nn.Module, say: Callable[[str], None], world: World = ALONE) -> None:
        """Loads the weights into `model` and logs those that keep their initialization; adapters may be missing.

        A model on the meta device is only compared with the checkpoint.

        Args:
            model: The model to load into, in place.
            say: Receives the log lines.
            world: The processes that hold the model.

        Raises:
            RunError: The checkpoint belongs to another model, apart from `may_differ`.
        """
        kept = read_weights(self.checkpoint, model, adapter_weights(model), self.may_differ, world=world)
        say(f"starting from the weights of {self.checkpoint}")
        if kept:
            shown = ", ".join(kept[:_MOST_NAMES]) + (", ..." if len(kept) > _MOST_NAMES else "")
            say(f"{len(kept)} weights keep their initialization: {shown}")
