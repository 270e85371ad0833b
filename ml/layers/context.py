"""What the layers of one forward pass share."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Context:
    """Handed unchanged to every block and mixer of a forward pass.

    `positions`: the place of each token in its document, integers of shape (T) or (B, T); None is 0, 1, ..., T-1.
    """

    positions: Tensor | None = None
