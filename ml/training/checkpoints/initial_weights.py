"""The weights that a fresh run starts from."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import nn

from ml.models.adapters import adapter_weights
from ml.training.checkpoints.weight_files import read_weights

_MOST_NAMES = 5  # in a message


class InitialWeights(NamedTuple):
    """A checkpoint of another run."""

    checkpoint: Path
    may_differ: tuple[str, ...] = ()  # patterns of the names of weights that it need not have

    def read(self, model: nn.Module, say: Callable[[str], None]) -> None:
        """Puts its weights into `model`, and says which ones stay as they were made; adapters always may.

        A model on the meta device is only compared with it.

        Raises:
            RunError: It is of another model, apart from what may differ.
        """
        kept = read_weights(self.checkpoint, model, adapter_weights(model), self.may_differ)
        say(f"starting from the weights of {self.checkpoint}")
        if kept:
            shown = ", ".join(kept[:_MOST_NAMES]) + (", ..." if len(kept) > _MOST_NAMES else "")
            say(f"{len(kept)} weights start as they are made: {shown}")
